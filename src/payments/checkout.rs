//! Making an order and making it payable: what `orders create` and the local API have in common.
//!
//! The order is stored before the gateway hears of it: a payment can never be for an order that we do not know.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use crate::channel::epay::client::{PayTarget, Payable};
use crate::config::{Config, Current, Merchant, Package, PayPageSource, faults_of_gateway_text};
use crate::domain::clock::Timestamp;
use crate::domain::language::{Language, Localized, LocalizedText, localized, text};
use crate::domain::money::Amount;
use crate::domain::order::{NewOrder, Order, OrderNo, OrderStatus, PayKind, PayPage};
use crate::payments::gateways::Gateways;
use crate::store::{AccountError, Creation, Idempotency, Store, StoreError};

/// The payment method where none is named.
pub(crate) const DEFAULT_PAYMENT_TYPE: &str = "alipay";
/// Gateways want to know the buyer's address, and a bot does not know it.
const UNKNOWN_CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Bots are used on phones.
const DEVICE: &str = "mobile";

/// Whether a text can be the name of a payment method; which there are is the gateway's affair.
pub(crate) fn is_payment_type(text: &str) -> bool {
    (1..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// An order that somebody wants.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    /// The buyer's Telegram id, above zero.
    pub telegram_id: i64,
    /// What is bought.
    pub goods: Goods,
    /// The payment method.
    pub payment_type: String,
    /// The merchant's pid; needed where there are several.
    pub merchant: Option<String>,
    /// What is to come back in the notification.
    pub param: Option<String>,
    /// The buyer's language, where it is known.
    pub language: Option<Language>,
    /// The buyer's address, where it is known.
    pub client_ip: Option<IpAddr>,
    /// So that it is created once.
    pub idempotency: Option<Idempotency>,
}

/// What is bought.
#[derive(Clone, Debug)]
pub(crate) enum Goods {
    /// A configured package, by its id.
    Package(String),
    /// Credits at a price.
    Credits {
        /// The price.
        amount: Amount,
        /// The credits.
        credits: i64,
        /// What gateways and buyers call it; a plain name where there is none.
        name: Option<String>,
    },
}

impl Goods {
    /// A package, or credits at a price; `None` for neither.
    pub(crate) fn of(package: Option<String>, price: Option<(Amount, i64)>, name: Option<String>) -> Option<Self> {
        let credits = || price.map(|(amount, credits)| Self::Credits { amount, credits, name });
        package.map(Self::Package).or_else(credits)
    }
}

/// Why there is no order.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum CheckoutError {
    /// The wish cannot be granted as it stands; what to change.
    #[error("impossible_order: {0}")]
    Impossible(LocalizedText),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] AccountError),
}

impl From<StoreError> for CheckoutError {
    fn from(error: StoreError) -> Self {
        Self::Store(error.into())
    }
}

impl Localized for CheckoutError {
    fn text(&self, language: Language) -> String {
        match self {
            Self::Impossible(text) => text.text(language),
            Self::Store(error) => error.text(language),
        }
    }
}

/// An order, and how it went with its payment page.
#[derive(Debug)]
pub(crate) struct Checkout {
    /// The order, with its payment page where there is one.
    pub order: Order,
    /// Whether an earlier request with the same key had created it.
    pub repeated: bool,
    /// What is worth saying about the payment page: why there is none, or why it is another than asked for.
    pub remark: Option<LocalizedText>,
}

/// Creates orders.
#[derive(Clone)]
pub(crate) struct Cashier {
    config: Current,
    store: Store,
    gateways: Arc<Gateways>,
}

impl Cashier {
    pub(crate) fn new(config: &Current, store: &Store, gateways: &Arc<Gateways>) -> Self {
        Self { config: config.clone(), store: store.clone(), gateways: Arc::clone(gateways) }
    }

    /// Creates an order, and has the merchant's gateway make it payable.
    pub(crate) async fn create(&self, wish: Wish) -> Result<Checkout, CheckoutError> {
        let client_ip = wish.client_ip.unwrap_or(UNKNOWN_CLIENT);
        let creation = {
            let config = self.config.load();
            creation(wish, &config, self.gateways.clock().now())?
        };
        let created = self.store.create_order(creation).await?;
        let (mut order, repeated) = (created.order, created.repeated);
        if order.pay_page.is_some() || order.stored_status != OrderStatus::Pending {
            return Ok(Checkout { order, repeated, remark: None });
        }
        let (page, remark) = match self.pay_page(&order, client_ip).await {
            Ok((page, remark)) => (page, remark),
            Err(remark) => (None, Some(remark)),
        };
        if let Some(page) = page {
            self.store.set_pay_page(order.terms.order_no.to_string(), page.clone()).await?;
            order.pay_page = Some(page);
        }
        Ok(Checkout { order, repeated, remark })
    }

    /// Where the order can be paid, with a remark where that is not as it was asked for; an error is the reason for none.
    async fn pay_page(
        &self,
        order: &Order,
        client_ip: IpAddr,
    ) -> Result<(Option<PayPage>, Option<LocalizedText>), LocalizedText> {
        let terms = &order.terms;
        let (source, notify_url, return_url) = {
            let config = self.config.load();
            let Some(merchant) = config.merchant(&terms.merchant) else { return Ok((None, None)) };
            if merchant.gateway_url.is_none() {
                return Ok((None, None));
            }
            let urls = merchant.notify_url.clone().zip(merchant.return_url.clone());
            let (notify_url, return_url) = urls.ok_or_else(|| localized!("checkout.no_urls"))?;
            (merchant.pay_page, notify_url, return_url)
        };
        let gateway = self.gateways.of(&terms.merchant).ok_or_else(|| localized!("checkout.no_private_key"))?;
        let payable = Payable {
            order_no: &terms.order_no,
            payment_type: &terms.payment_type,
            name: &terms.name,
            amount: terms.amount,
            param: terms.param.as_deref(),
            notify_url: &notify_url,
            return_url: &return_url,
            client_ip,
            device: DEVICE,
        };
        let link = || gateway.pay_link(&payable).map(|url| PayPage { kind: PayKind::Url, url });
        if source == PayPageSource::Link {
            return link().map(|page| (Some(page), None)).ok_or_else(|| localized!("checkout.no_link"));
        }
        match gateway.create(&payable).await {
            Ok(page) => Ok((Some(page_of(page.target)), None)),
            // The gateway's own page asks for nothing in advance, and tells the buyer itself what it does not like.
            Err(error) => match link() {
                Some(page) => Ok((Some(page), Some(localized!("checkout.link_instead", cause = error)))),
                None => Err(localized!("checkout.no_page", cause = error)),
            },
        }
    }
}

fn page_of(target: PayTarget) -> PayPage {
    match target {
        PayTarget::Url(url) => PayPage { kind: PayKind::Url, url },
        PayTarget::QrCode(url) => PayPage { kind: PayKind::QrCode, url },
        PayTarget::UrlScheme(url) => PayPage { kind: PayKind::UrlScheme, url },
    }
}

/// The wish as an order under the configured merchants and packages.
pub(crate) fn creation(wish: Wish, config: &Config, now: Timestamp) -> Result<Creation, CheckoutError> {
    let merchant = choose_merchant(config, wish.merchant.as_deref())?;
    let (amount, credits, name, package) = match wish.goods {
        Goods::Package(id) => {
            let package = find_package(config, &id)?;
            (package.price, package.credits, package.name.clone(), Some(id))
        }
        Goods::Credits { amount, credits, name } => {
            let name =
                name.unwrap_or_else(|| text!(config.language, "cli.product_name", credits = credits).into_owned());
            (amount, credits, name, None)
        }
    };
    for (field, text) in [("name", Some(&name)), ("param", wish.param.as_ref())] {
        if let Some(fault) = text.and_then(|text| faults_of_gateway_text(text).into_iter().next()) {
            let text = text.map_or("", |text| text);
            let told = |language| format!("{field} `{text}`: {}", fault.text(language));
            return Err(CheckoutError::Impossible(LocalizedText::new("faulty_text", told)));
        }
    }
    let ask_after_s = config.reconcile.schedule_s.first().filter(|_| merchant.gateway_url.is_some());
    let order = NewOrder {
        order_no: OrderNo::generate(now),
        merchant: merchant.pid.clone(),
        telegram_id: wish.telegram_id,
        package,
        name,
        payment_type: wish.payment_type,
        amount,
        credits,
        param: wish.param,
        created_at: now,
        expires_at: now.plus_seconds(config.orders.expire_after_s),
    };
    Ok(Creation {
        order,
        language: wish.language,
        ask_at: ask_after_s.map(|&seconds| now.plus_seconds(seconds)),
        idempotency: wish.idempotency,
    })
}

fn choose_merchant<'a>(config: &'a Config, named: Option<&str>) -> Result<&'a Merchant, CheckoutError> {
    let known = || config.merchants.iter().map(|merchant| merchant.pid.as_str()).collect::<Vec<_>>().join(", ");
    let impossible = |text| Err(CheckoutError::Impossible(text));
    match (named, config.merchants.as_slice()) {
        (_, []) => impossible(localized!("cli.no_merchant")),
        (None, [only]) => Ok(only),
        (None, _) => impossible(localized!("cli.which_merchant", known = known())),
        (Some(pid), _) => match config.merchant(pid) {
            Some(merchant) => Ok(merchant),
            None => impossible(localized!("cli.unknown_merchant", pid = pid, known = known())),
        },
    }
}

fn find_package<'a>(config: &'a Config, id: &str) -> Result<&'a Package, CheckoutError> {
    config.package(id).ok_or_else(|| {
        let known: Vec<_> = config.packages.iter().map(|package| package.id.as_str()).collect();
        CheckoutError::Impossible(localized!("cli.unknown_package", id = id, known = known.join(", ")))
    })
}
