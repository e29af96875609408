use std::collections::BTreeSet;

use hyper::header::HeaderValue;
use serde_json::Value;

use super::*;

#[test]
fn every_route_is_described_and_nothing_else() {
    let description: Value = serde_json::from_str(OPENAPI).unwrap();
    let described: BTreeSet<_> = description["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| {
            let methods = item.as_object().unwrap().keys().filter(|key| *key != "parameters");
            methods.map(move |method| (method.to_ascii_uppercase(), path.clone()))
        })
        .collect();
    let routed = ROUTES.iter().map(|(method, path, _)| (method.to_string(), (*path).to_owned())).collect();
    assert_eq!(described, routed);
}

#[test]
fn paths_lead_to_their_routes() {
    for (method, path, expected) in [
        (Method::POST, "/v1/orders", Ok((Route::CreateOrder, ""))),
        (Method::GET, "/v1/orders/X1", Ok((Route::ShowOrder, "X1"))),
        (Method::GET, "/v1/orders/X1/qr.png", Ok((Route::QrCode, "X1"))),
        (Method::POST, "/v1/users/7/spend", Ok((Route::Spend, "7"))),
        (Method::GET, "/openapi.json", Ok((Route::Description, ""))),
        (Method::GET, "/v1/orders/", Err("not_found")),
        (Method::GET, "/v1/orders/X1/", Err("not_found")),
        (Method::GET, "/v1/orders/X1/qr.gif", Err("not_found")),
        (Method::GET, "/", Err("not_found")),
        (Method::GET, "//v1/packages", Err("not_found")),
        (Method::GET, "/v1/orders", Err("method_not_allowed")),
        (Method::HEAD, "/v1/packages", Err("method_not_allowed")),
        (Method::DELETE, "/v1/orders/X1", Err("method_not_allowed")),
    ] {
        let found = find(&method, path).map_err(|problem| problem.code());
        assert_eq!(found, expected, "{method} {path}");
    }
}

#[test]
fn a_token_comes_in_the_bearer_scheme() {
    for (value, token) in [
        ("Bearer secret", Some("secret")),
        ("bearer  secret ", Some("secret")),
        ("Basic secret", None),
        ("secret", None),
        ("Bearer", None),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_static(value));
        assert_eq!(bearer_token(&headers), token, "{value:?}");
    }
}
