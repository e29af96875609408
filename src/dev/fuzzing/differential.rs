use super::plain::{self, Fields};
use super::{KEY, now, v1};
use crate::channel::epay::Unverified;
use crate::domain::money::Amount;
use crate::domain::order::PaymentState;

/// The merchant that both programs are asked to believe.
pub const PID: &str = "1001";

/// How many bytes and fields the other program reads.
const OTHER_BYTES_MAX: usize = 16 * 1024;

/// What another program that speaks the protocol reads in a notification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherReading {
    /// The merchant's number of the order.
    pub out_trade_no: String,
    /// The gateway's number of the payment.
    pub trade_no: String,
    /// What was paid, in fen; `None` where it does not fit.
    pub money_fen: Option<i64>,
    /// Whether it is paid.
    pub paid: bool,
    /// What the merchant sent, empty where there is none.
    pub param: String,
}

/// What both programs believe they read alike, except for money that is written in another way than the protocol's, which
/// we do not read. We believe less only where a field has a second reading, the merchant is written in another way, or
/// the order or the signature is blank; and more only where the other one has limits that the protocol has not.
///
/// `data` is a query string, behind one byte that says how it is signed, if it is; `other` is the other program,
/// asked about the merchant [`PID`] with the key [`KEY`].
///
/// # Panics
///
/// Where that does not hold of `data`.
pub fn differential(data: &[u8], other: impl Fn(&str) -> Option<OtherReading>) {
    let Some((&way, query)) = data.split_first() else { return };
    let Ok(query) = std::str::from_utf8(query) else { return };
    let mut query = query.to_owned();
    if way % 4 != 0 {
        let Some(mut fields) = plain::read(query.as_bytes()) else { return };
        fields.retain(|(key, _)| key != "sign");
        let sign = plain::sign(&fields, way % 4 == 2, KEY);
        query = format!("{}&sign={sign}", plain::write(&fields, way & 16 != 0));
        // Most of what we are asked about has it, and the other one insists.
        if way & 8 != 0 && plain::value(&fields, "sign_type").is_none() {
            query.push_str("&sign_type=MD5");
        }
    }
    let ours = Unverified::parse(query.as_bytes()).ok().filter(|read| read.pid() == PID);
    let ours = ours.and_then(|read| read.verify(&v1(KEY), now()).ok());
    let fields = plain::read(query.as_bytes()).unwrap_or_default();
    match (ours, other(&query)) {
        (Some(ours), Some(other)) => {
            let ours = OtherReading {
                out_trade_no: ours.out_trade_no,
                trade_no: ours.trade_no.unwrap_or_default(),
                money_fen: ours.money.map(Amount::fen),
                paid: ours.payment == PaymentState::Paid,
                param: ours.param.unwrap_or_default(),
            };
            let said = |text: String| Some(text).filter(|text| !plain::is_blank(text)).unwrap_or_default();
            let money = plain::value(&fields, "money").unwrap_or_default();
            let other = OtherReading {
                param: said(other.param),
                trade_no: said(other.trade_no),
                // Money with white space, a sign or an underscore is no money here: it settles nothing.
                money_fen: other.money_fen.filter(|_| plain::fen(money).is_some()),
                ..other
            };
            assert_eq!(ours, other, "{query}");
        }
        (None, Some(_)) => assert!(is_ours_to_refuse(&fields), "{query} is not believed"),
        (Some(_), None) => assert!(is_theirs_to_refuse(&query, &fields), "{query} is believed"),
        (None, None) => {}
    }
}

/// Where we are stricter: a second reading, a blank field that is needed, and a merchant that is written in another way.
fn is_ours_to_refuse(fields: &Fields) -> bool {
    let pid = plain::value(fields, "pid").unwrap_or_default();
    !plain::has_one_reading(fields) || !plain::is_complete(fields) || pid != PID
}

/// Where the other one is stricter: it insists on `sign_type`, on a type and a name, on the numbers' letters and
/// lengths, and on money that is a number above zero; it knows one dialect of blank values; and it reads 16 KiB.
fn is_theirs_to_refuse(query: &str, fields: &Fields) -> bool {
    let value = |key| plain::value(fields, key).unwrap_or_default();
    let is_word = |key, punctuation: &str, length_max: usize| {
        let is_of_word = |c: char| c.is_ascii_alphanumeric() || punctuation.contains(c);
        (1..=length_max).contains(&value(key).len()) && value(key).chars().all(is_of_word)
    };
    let name = value("name");
    query.len() > OTHER_BYTES_MAX
        || value("sign_type").is_empty()
        || !is_word("trade_no", "", 128)
        || !is_word("out_trade_no", "._|-", 64)
        || !is_word("type", "_-", 32)
        || name.trim().is_empty()
        || name.len() > 255
        || name.chars().any(char::is_control)
        || plain::fen(value("money")).is_none_or(|fen| fen == 0)
        || !value("sign").eq_ignore_ascii_case(&plain::sign(fields, false, KEY))
        || value("trade_status").trim().is_empty()
        // More digits than its numbers have.
        || value("money").len() > 28
}
