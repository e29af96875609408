//! What goes wrong on request: which faults there are, how probable each is, and the dice.

use std::str::FromStr;

use crate::domain::money::Amount;
use crate::domain::named::named_enum;

named_enum! {
    /// Something that real gateways do wrong.
    Fault {
        /// The first callback comes some minutes late, and the others with it.
        Late = "late",
        /// A callback is sent again after it was delivered.
        Duplicate = "duplicate",
        /// Several copies of a callback are sent at once.
        Concurrent = "concurrent",
        /// There is no callback at all.
        Never = "never",
        /// The first callback has another amount, rightly signed.
        WrongAmount = "wrong-amount",
        /// The first callback has another merchant's id, signed with this one's key.
        WrongPid = "wrong-pid",
        /// The first callback has a spoilt signature.
        BadSign = "bad-sign",
        /// Replies and pages take some seconds.
        Slow = "slow",
        /// What the API was asked for is done, and its reply is an HTML page with status 500.
        Error500 = "error-500",
        /// What the API was asked for is done, and the connection closed without a reply; a callback's answer is not waited for.
        Reset = "reset",
        /// A query is answered with another merchant's id.
        LiePid = "lie-pid",
        /// A query is answered with another amount.
        LieMoney = "lie-money",
        /// A query for an unpaid order says status 1, and everything else in the reply that it is not paid.
        LieStatus = "lie-status",
        /// The API does nothing, and answers 429.
        RateLimit = "rate-limit",
    }
}

/// How probable something is, from 0 (never) to 1 (always).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Probability(f64);

impl Probability {
    const NEVER: Self = Self(0.0);
    /// What happens every time.
    pub(crate) const ALWAYS: Self = Self(1.0);
}

impl FromStr for Probability {
    type Err = BadFault;

    fn from_str(text: &str) -> Result<Self, BadFault> {
        let number: Option<f64> = text.parse().ok();
        number.filter(|number| (0.0..=1.0).contains(number)).map(Self).ok_or(BadFault)
    }
}

/// A fault that is asked for, or all of them, with its probability: `late`, `late=0.5`, `all=0.2`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct FaultAsked {
    /// `None` for all.
    fault: Option<Fault>,
    probability: Probability,
}

/// A text that asks for no fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not NAME or NAME=PROBABILITY")]
pub(crate) struct BadFault;

impl FromStr for FaultAsked {
    type Err = BadFault;

    fn from_str(text: &str) -> Result<Self, BadFault> {
        let (name, probability) = match text.split_once('=') {
            Some((name, probability)) => (name, probability.parse()?),
            None => (text, Probability::ALWAYS),
        };
        let fault = if name == "all" { None } else { Some(Fault::from_name(name).ok_or(BadFault)?) };
        Ok(Self { fault, probability })
    }
}

/// How probable each fault is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Faults([Probability; Fault::ALL.len()]);

impl Default for Faults {
    fn default() -> Self {
        Self([Probability::NEVER; Fault::ALL.len()])
    }
}

impl FromIterator<FaultAsked> for Faults {
    /// The last word on a fault counts.
    fn from_iter<T: IntoIterator<Item = FaultAsked>>(asked: T) -> Self {
        let mut faults = Self::default();
        for FaultAsked { fault, probability } in asked {
            match fault {
                Some(fault) => faults.0[fault as usize] = probability,
                None => faults.0.fill(probability),
            }
        }
        faults
    }
}

impl Faults {
    pub(super) fn probability(&self, fault: Fault) -> Probability {
        self.0[fault as usize]
    }
}

/// How many throws there are: of 32 bits, so that each is exact in a float.
const THROWS: f64 = 4_294_967_296.0;

/// What a throw of the dice decides, apart from the faults; each has its own sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    Fault(Fault),
    /// Whether an order is paid by itself.
    AutoPay,
    /// How many minutes late the first callback is.
    Minutes,
    /// How many copies are sent at once.
    Copies,
}

/// The dice: the same seed, order and occasion give the same throw, whatever else is going on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dice {
    pub(super) seed: u64,
}

impl Dice {
    /// Whether something of this probability happens to the order of this number, on this occasion.
    pub(super) fn happens(self, question: Question, probability: Probability, order: u64, occasion: u64) -> bool {
        let thrown = self.throw(question, order, occasion) >> 32;
        let thrown = u32::try_from(thrown).expect("32 bits are left");
        f64::from(thrown) < probability.0 * THROWS
    }

    /// A number below `sides`.
    pub(super) fn roll(self, question: Question, sides: u32, order: u64, occasion: u64) -> u32 {
        let rolled = self.throw(question, order, occasion) % u64::from(sides);
        u32::try_from(rolled).expect("it is below a u32")
    }

    fn throw(self, question: Question, order: u64, occasion: u64) -> u64 {
        let question = match question {
            Question::Fault(fault) => fault as u64,
            Question::AutoPay => 100,
            Question::Minutes => 101,
            Question::Copies => 102,
        };
        [question, order, occasion].into_iter().fold(mixed(self.seed), |state, input| mixed(state ^ mixed(input)))
    }
}

/// One step of splitmix64: every bit of the input changes half of the output's.
fn mixed(input: u64) -> u64 {
    let mut z = input.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// An amount that is not this one, and not far from it.
pub(super) fn other_amount(money: Amount) -> Amount {
    let fen = if money.fen() > 1 { money.fen() - 1 } else { money.fen() + 1 };
    Amount::from_fen(fen).unwrap_or(money)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(asked: &[&str]) -> Faults {
        asked.iter().map(|text| text.parse::<FaultAsked>().unwrap()).collect()
    }

    #[test]
    fn faults_are_asked_for_by_name_one_by_one_or_all() {
        let some = faults(&["late", "wrong-pid=0.25"]);
        assert_eq!(some.probability(Fault::Late), Probability::ALWAYS);
        assert_eq!(some.probability(Fault::WrongPid), Probability(0.25));
        assert_eq!(some.probability(Fault::Never), Probability::NEVER);
        let all_but_one = faults(&["all=0.2", "never=0"]);
        for &fault in Fault::ALL {
            let expected = if fault == Fault::Never { 0.0 } else { 0.2 };
            assert_eq!(all_but_one.probability(fault), Probability(expected), "{fault}");
        }
        for text in ["", "later", "late=", "late=2", "late=-1", "late=NaN", "late=x", "=1", "Late"] {
            assert_eq!(text.parse::<FaultAsked>(), Err(BadFault), "{text:?}");
        }
    }

    #[test]
    fn a_seed_decides_everything() {
        let throws = |seed| -> Vec<bool> {
            let half = Probability(0.5);
            (0..64).map(|n| Dice { seed }.happens(Question::Fault(Fault::Late), half, n / 8, n % 8)).collect()
        };
        assert_eq!(throws(1), throws(1));
        assert_ne!(throws(1), throws(2));
    }

    #[test]
    fn what_is_probable_happens_as_often() {
        let dice = Dice { seed: 7 };
        for (text, range) in [("0", 0..=0), ("0.1", 900..=1100), ("0.5", 4800..=5200), ("1", 10_000..=10_000)] {
            let probability = text.parse().unwrap();
            let happens = |&n: &u64| dice.happens(Question::Fault(Fault::Never), probability, n, 0);
            let count = (0..10_000).filter(happens).count();
            assert!(range.contains(&count), "{text}: {count}");
        }
        assert!((0..100).all(|n| dice.roll(Question::Copies, 3, n, 0) < 3));
    }
}
