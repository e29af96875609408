//! A process of the service, taken apart: its store, the way of a notification, and each loop as single rounds.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::model::listed;
use super::outside::{BOT, EVENT_SECRET, GATEWAY, OPERATOR, Outside, Part, TELEGRAM};
use super::world::{KEY_PREVIOUS, Settings, key_of};
use crate::config::{Config, Current, DatabaseUrl};
use crate::domain::clock::{Clock, Timestamp};
use crate::domain::jitter::Jitter;
use crate::domain::language::Language;
use crate::domain::notices::{NoticeKind, Notices};
use crate::domain::settlement::LatePolicy;
use crate::net::backoff::Backoff;
use crate::outbox::telegram::Sender;
use crate::outbox::{Buyers, CONCURRENCY, Courier, Dispatcher, Events, Round, Taken, Verdict, Watch};
use crate::payments::gateways::Gateways;
use crate::payments::reconcile::Reconciler;
use crate::server::Notify;
use crate::service::DueTimes;
use crate::store::sqlite::faults::Faults;
use crate::store::{Channel, Delivery, Question, Store, StoreError};

/// When an unpaid order is asked about, in seconds after its creation.
pub(super) const SCHEDULE_S: [u32; 7] = [15, 60, 300, 1200, 3600, 21_600, 86_400];

/// A bug that could be in what the service does by itself, planted by a part that is given to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServiceBug {
    /// A failed attempt is taken for a delivery.
    TakesFailureForDelivery,
    /// A failed attempt is the last.
    GivesUpAtOnce,
    /// "Too many requests" is a failure of the message, and the channel is not left alone.
    IgnoresPause,
    /// Messages that another courier has in hand are claimed.
    IgnoresLease,
    /// One time of the schedule is left out.
    SkipsAQuestion,
    /// An order that the gateway calls unpaid is paid.
    BelievesUnpaid,
    /// What the gateway says of another order counts.
    BelievesOtherOrder,
    /// What could not be told to the operator is told.
    ForgetsTheOperator,
}

/// Something that the service does by itself.
#[derive(Clone, Debug)]
pub(super) enum Act {
    /// Looks into the outbox.
    TakeUp { channel: Channel },
    /// Delivers one of the messages in hand.
    Deliver { hand: usize, part: Part },
    /// Looks for orders to ask about.
    TakeUpQuestions,
    /// Asks one of the questions in hand.
    Ask { hand: usize, part: Part, word: &'static str },
    /// Tells the operator what there is to tell.
    TellOperator { part: Part },
    /// Looks whether the clock was set back.
    FollowClock,
}

/// A message in hand, and what the contract promises of it.
pub(super) struct Hand {
    taken: AnyTaken,
    pub(super) place: (String, String, String),
    pub(super) id: i64,
    pub(super) attempts: u32,
    /// When its time began.
    pub(super) tried_since: Timestamp,
}

enum AnyTaken {
    Buyer(Box<Taken<<Buyers as Courier>::Route>>),
    Bot(Box<Taken<<Events as Courier>::Route>>),
}

/// What the contract promises of a process, for as long as it lives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Promises {
    /// Until then each channel is left alone.
    pub(super) paused_until: [Instant; 2],
    /// When a message last went to Telegram.
    pub(super) sent_at: Option<Instant>,
    /// Until then the gateway is not asked.
    pub(super) gateway_paused_until: Instant,
    /// Questions in a row that got no answer.
    pub(super) gateway_failures: u32,
    /// Until then the operator is left alone.
    pub(super) operator_paused_until: Instant,
    /// How far the clock was set forward since it was last looked at; less than zero where it was set back.
    pub(super) set_by_ms: i64,
}

pub(super) struct Process {
    pub(super) store: Store,
    pub(super) faults: Faults,
    pub(super) notify: Arc<Notify>,
    buyers: Dispatcher<Spoilt<Buyers>>,
    events: Dispatcher<Spoilt<Events>>,
    reconciler: Arc<Reconciler>,
    due_times: DueTimes,
    watch: Watch,
    /// When the operator is told next.
    pub(super) watch_due: Instant,
    pub(super) hands: Vec<Hand>,
    pub(super) questions: Vec<Question>,
    pub(super) promises: Promises,
    /// How long the last look into an outbox lets the loop sleep.
    pub(super) next_after: Duration,
    clock: Clock,
    bug: Option<ServiceBug>,
}

fn config(late: LatePolicy, bug: Option<ServiceBug>) -> Config {
    let is_asked = |seconds: &&u32| bug != Some(ServiceBug::SkipsAQuestion) || **seconds != 60;
    let schedule: Vec<_> = SCHEDULE_S.iter().filter(is_asked).collect();
    let text = format!(
        "[orders]\nlate = \"{late}\"\n
         [reconcile]\nschedule_s = {schedule:?}\nper_minute = 6000\n
         [telegram]\ntoken = \"1:AA\"\nadmin_chat_id = {OPERATOR}\napi_base = \"{TELEGRAM}\"\n
         [telegram.texts.zh]\nsettled = \"settled {{order_no}}\"\nreview = \"review {{order_no}}\"\n
         refunded = \"refunded {{order_no}}\"\n
         [events]\nurl = \"{BOT}\"\nsecret = \"whsec_{EVENT_SECRET}\"\n
         [[merchant]]\npid = \"1002\"\nkey = \"{}\"\nkey_previous = \"{KEY_PREVIOUS}\"\n
         gateway_url = \"{GATEWAY}\"\n
         [[merchant]]\npid = \"1003\"\nkey = \"{}\"\nallow_ips = [\"203.0.113.0/24\"]\n
         [[merchant]]\npid = \"1004\"\nprotocol = \"v2\"\nplatform_public_key_file = \"v2_platform_public.pem\"\n
         [[merchant]]\npid = \"1005\"\nkey = \"{}\"\n",
        key_of("1002"),
        key_of("1003"),
        key_of("1005"),
    );
    Config::from_toml(&text, &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keys")).unwrap()
}

impl Process {
    pub(super) async fn start(path: &Path, settings: Settings, outside: &Outside) -> Self {
        let url = DatabaseUrl::Sqlite(path.to_owned());
        let (store, faults) = Store::open_with_faults(&url, settings.bug, settings.tells_bot).await.unwrap();
        let (bug, clock) = (settings.service_bug, outside.clock.clone());
        let config = Current::new(config(settings.late, bug));
        let (client, notices, jitter) = (outside.client(bug), Notices::default(), Jitter::of_seed(settings.seed));
        let gateways = Arc::new(Gateways::new(&config, &store, &client, &clock).telling(&notices));
        let notify = Arc::new(Notify::new(config.clone(), store.clone(), Arc::clone(&gateways)));
        let reconciler = Reconciler::new(&config, &store, &gateways).jittered_by(jitter.clone());
        let sender = Sender::new(client.clone(), clock.clone());
        let buyers = Spoilt { courier: Buyers::new(config.clone(), sender.clone()), bug };
        let watch = Watch::new(notices.clone(), config.clone(), store.clone(), sender, clock.clone());
        let events = Events::new(config, store.clone(), client, notices.clone(), clock.clone());
        let events = Spoilt { courier: events, bug };
        let instant = clock.instant();
        Self {
            buyers: Dispatcher::new(buyers, store.clone(), notices.clone(), clock.clone()).jittered_by(jitter.clone()),
            events: Dispatcher::new(events, store.clone(), notices, clock.clone()).jittered_by(jitter.clone()),
            reconciler: Arc::new(reconciler),
            due_times: DueTimes::new(store.clone(), &clock),
            watch: watch.jittered_by(jitter.clone()),
            watch_due: instant,
            hands: Vec::new(),
            questions: Vec::new(),
            promises: Promises {
                paused_until: [instant; 2],
                sent_at: None,
                gateway_paused_until: instant,
                gateway_failures: 0,
                operator_paused_until: instant,
                set_by_ms: 0,
            },
            next_after: Duration::ZERO,
            clock,
            bug,
            notify,
            faults,
            store,
        }
    }

    pub(super) async fn end(self) {
        let Self { store, notify, buyers, events, reconciler, due_times, watch, hands, .. } = self;
        drop((notify, buyers, events, reconciler, due_times, watch, hands));
        store.close().await.unwrap();
    }

    /// How many more messages of a channel it takes up.
    pub(super) fn room(&self, channel: Channel) -> usize {
        CONCURRENCY - self.hands.iter().filter(|hand| hand.place.2 == channel.name()).count()
    }

    /// Does something, and says what it took in hand.
    pub(super) async fn act(&mut self, act: &Act) -> String {
        match *act {
            Act::TakeUp { channel } => {
                let (room, before, now) = (self.room(channel), self.hands.len(), self.clock.now());
                if self.bug == Some(ServiceBug::IgnoresLease) {
                    // One whose clock says that each lease is over.
                    self.clock.set(now.plus_seconds(60));
                }
                self.next_after = match channel {
                    Channel::Telegram => {
                        let round = self.buyers.round(room).await;
                        self.take(round, |taken| AnyTaken::Buyer(Box::new(taken)))
                    }
                    Channel::Event => {
                        let round = self.events.round(room).await;
                        self.take(round, |taken| AnyTaken::Bot(Box::new(taken)))
                    }
                };
                self.clock.set(now);
                listed(self.hands[before..].iter().map(|hand| {
                    let (order_no, kind, _) = &hand.place;
                    format!("{}:{order_no}/{kind}/{}", hand.id, hand.attempts)
                }))
            }
            Act::Deliver { hand, .. } => {
                match self.hands.remove(hand).taken {
                    AnyTaken::Buyer(taken) => self.buyers.deliver(*taken).await,
                    AnyTaken::Bot(taken) => self.events.deliver(*taken).await,
                }
                String::new()
            }
            Act::TakeUpQuestions => {
                let questions = self.reconciler.round().await;
                let name = |question: &Question| format!("{}/{}", question.order.terms.order_no, question.step);
                let reply = listed(questions.iter().map(name));
                self.questions.extend(questions);
                reply
            }
            Act::Ask { hand, .. } => {
                let question = self.questions.remove(hand);
                Arc::clone(&self.reconciler).answer_question(question).await;
                String::new()
            }
            Act::TellOperator { .. } => {
                let pause = self.watch.round(&CancellationToken::new()).await;
                self.watch_due = self.clock.instant() + pause;
                String::new()
            }
            Act::FollowClock => {
                self.due_times.round().await;
                String::new()
            }
        }
    }

    fn take<R>(&mut self, round: Round<R>, any: impl Fn(Taken<R>) -> AnyTaken) -> Duration {
        for taken in round.taken {
            let Delivery { id, news, attempts, tried_since, ref order, .. } = taken.delivery;
            let (order_no, kind) = (order.terms.order_no.to_string(), news.name().to_owned());
            let taken = any(taken);
            let channel = match taken {
                AnyTaken::Buyer(_) => Channel::Telegram,
                AnyTaken::Bot(_) => Channel::Event,
            };
            self.hands.push(Hand { taken, place: (order_no, kind, channel.name().into()), id, attempts, tried_since });
        }
        round.next_after
    }
}

/// A courier, with a planted bug if one is wanted.
struct Spoilt<C> {
    courier: C,
    bug: Option<ServiceBug>,
}

impl<C: Courier> Courier for Spoilt<C> {
    const CHANNEL: Channel = C::CHANNEL;
    const KEEPS_TRYING: Duration = C::KEEPS_TRYING;
    const BACKOFF: Backoff = C::BACKOFF;
    const FAILURE: NoticeKind = C::FAILURE;
    type Route = C::Route;

    async fn route(&self) -> Result<Option<C::Route>, StoreError> {
        self.courier.route().await
    }

    fn language(&self) -> Language {
        self.courier.language()
    }

    async fn deliver(&self, route: &C::Route, delivery: &Delivery) -> Verdict {
        match (self.courier.deliver(route, delivery).await, self.bug) {
            (Verdict::Again { .. }, Some(ServiceBug::TakesFailureForDelivery)) => Verdict::Sent,
            (Verdict::Again { error, .. }, Some(ServiceBug::GivesUpAtOnce)) => Verdict::Final { error },
            (Verdict::Pause { error, .. }, Some(ServiceBug::IgnoresPause)) => Verdict::Again { error, after: None },
            (verdict, _) => verdict,
        }
    }
}
