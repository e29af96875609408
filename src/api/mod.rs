//! The local HTTP API: the bot creates orders, shows credits and spends them without touching the database.
//!
//! Off unless `[api] listen` is configured. [`listener`] is where it listens, [`connection`] how long it does and what a
//! connection may cost; [`orders`] and [`accounts`] have the routes. What goes wrong is a [`problem`]. A request that changes
//! something names itself by an idempotency key ([`idempotency`]), so that a bot may repeat it whenever no answer came.
//! `openapi.json` describes all of it, and tests hold the two together.

mod accounts;
mod connection;
mod fields;
mod idempotency;
mod listener;
mod orders;
mod problem;
mod qr;
mod request;

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HeaderMap};
use hyper::{Method, Request, StatusCode};
use ring::digest::{SHA256, digest};
use serde::Serialize;
use subtle::ConstantTimeEq;
use tokio::time::timeout;

use crate::config::Current;
use crate::domain::clock::Clock;
use crate::domain::language::localized;
use crate::net::response::{JSON, Response, respond_uncached};
use crate::payments::checkout::Cashier;
use crate::payments::gateways::Gateways;
use crate::store::Store;
pub(crate) use listener::{Bound, Listening};
use problem::Problem;
use request::Asked;

/// How long a request may take once its body is there.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long creating an order may take: the gateway is asked for a page to pay on.
const CREATION_TIMEOUT: Duration = Duration::from_secs(30);
/// The description of all this, as it is served.
const OPENAPI: &str = include_str!("openapi.json");

/// Everything that answers requests.
pub(crate) struct Api {
    config: Current,
    store: Store,
    cashier: Cashier,
    clock: Clock,
}

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    CreateOrder,
    ShowOrder,
    QrCode,
    ShowUser,
    Spend,
    Grant,
    Packages,
    Description,
}

/// Where it is asked for; what stands in a path's braces is the route's argument.
const ROUTES: &[(Method, &str, Route)] = &[
    (Method::POST, "/v1/orders", Route::CreateOrder),
    (Method::GET, "/v1/orders/{order_no}", Route::ShowOrder),
    (Method::GET, "/v1/orders/{order_no}/qr.png", Route::QrCode),
    (Method::GET, "/v1/packages", Route::Packages),
    (Method::GET, "/v1/users/{telegram_id}", Route::ShowUser),
    (Method::POST, "/v1/users/{telegram_id}/grant", Route::Grant),
    (Method::POST, "/v1/users/{telegram_id}/spend", Route::Spend),
    (Method::GET, "/openapi.json", Route::Description),
];

impl Api {
    pub(crate) fn new(config: &Current, store: &Store, gateways: &Arc<Gateways>) -> Self {
        let cashier = Cashier::new(config, store, gateways);
        Self { config: config.clone(), store: store.clone(), cashier, clock: gateways.clock().clone() }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let response =
            self.try_answer(request).await.unwrap_or_else(|problem| problem.into_response(self.config.load().language));
        if response.status().is_client_error() {
            // What it was about is in the path; the rest may be long, and the bot has been told.
            let path: String = path.chars().take(80).collect();
            log::debug!("{} {method} {path}", response.status());
        }
        response
    }

    async fn try_answer(&self, request: Request<Incoming>) -> Result<Response, Problem> {
        if !self.is_authorized(request.headers()) {
            return Err(Problem::unauthorized());
        }
        let (route, argument) = find(request.method(), request.uri().path())?;
        let argument = argument.to_owned();
        let asked = Asked::read(request).await?;
        let patience = if route == Route::CreateOrder { CREATION_TIMEOUT } else { REQUEST_TIMEOUT };
        let answer = timeout(patience, self.take(route, &argument, &asked)).await;
        answer.unwrap_or_else(|_| Err(Problem::late(patience)))
    }

    async fn take(&self, route: Route, argument: &str, asked: &Asked) -> Result<Response, Problem> {
        match route {
            Route::CreateOrder => self.create_order(asked).await,
            Route::ShowOrder => self.show_order(argument).await,
            Route::QrCode => self.qr_code(argument).await,
            Route::ShowUser => self.show_user(argument).await,
            Route::Spend => self.spend(argument, asked).await,
            Route::Grant => self.grant(argument, asked).await,
            Route::Packages => Ok(self.packages()),
            Route::Description => Ok(respond_uncached(StatusCode::OK, JSON, OPENAPI)),
        }
    }

    /// Whether the request carries the token, found out in a time that tells nothing about it.
    fn is_authorized(&self, headers: &HeaderMap) -> bool {
        let config = self.config.load();
        let (Some(api), Some(given)) = (&config.api, bearer_token(headers)) else { return false };
        // Digests are equally long, whatever was given.
        let [given, token] = [given, api.token.expose()].map(|token| digest(&SHA256, token.as_bytes()));
        given.as_ref().ct_eq(token.as_ref()).into()
    }
}

fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The route of a path and method, with its argument.
fn find<'a>(method: &Method, path: &'a str) -> Result<(Route, &'a str), Problem> {
    let fitting = || ROUTES.iter().filter_map(|entry| Some((entry, argument_of(entry.1, path)?)));
    if let Some(((.., route), argument)) = fitting().find(|((own, ..), _)| own == method) {
        return Ok((*route, argument));
    }
    let methods: Vec<_> = fitting().map(|((own, ..), _)| own.clone()).collect();
    if methods.is_empty() {
        return Err(Problem::new(StatusCode::NOT_FOUND, "not_found", localized!("api.not_found")));
    }
    Err(Problem::method_not_allowed(&methods))
}

/// What a path has where the template has braces, or nothing where there are none; `None` where they do not fit.
fn argument_of<'a>(template: &str, path: &'a str) -> Option<&'a str> {
    let (mut templates, mut segments, mut argument) = (template.split('/'), path.split('/'), "");
    loop {
        match (templates.next(), segments.next()) {
            (None, None) => return Some(argument),
            (Some(template), Some(segment)) if template.starts_with('{') && !segment.is_empty() => argument = segment,
            (Some(template), Some(segment)) if template == segment => {}
            _ => return None,
        }
    }
}

fn json(status: StatusCode, value: &impl Serialize) -> Response {
    let body = serde_json::to_vec(value).expect("what we answer has text keys and no broken parts");
    respond_uncached(status, JSON, body)
}

#[cfg(test)]
mod tests;
