use super::{KEY, V2, now, plain, v1};
use crate::channel::epay::{Form, Unverified, WrongWay, decode_pairs, diagnose, glimpse, readable};
use crate::domain::money::Amount;
use crate::domain::secret::Secret;

/// What can be read of a query string or form body has one reading, the protocol's; what is believed of it is what
/// its merchant's key signed; and what is told of the rest, to a person, is true.
///
/// # Panics
///
/// Where that does not hold of `data`.
pub fn notification(data: &[u8]) {
    let fields = plain::read(data);
    let form = Form::parse(data);
    assert_eq!(form.is_ok(), fields.as_ref().is_some_and(plain::has_one_reading), "{form:?}");
    told_to_people(data, fields.as_ref());

    let unverified = Unverified::parse(data);
    let is_complete = fields.as_ref().is_some_and(|fields| form.is_ok() && plain::is_complete(fields));
    assert_eq!(unverified.is_ok(), is_complete, "{unverified:?}");
    let (Ok(form), Some(fields)) = (form, fields) else { return };
    one_reading(&form, &fields);

    let Ok(unverified) = unverified else { return };
    let is_believed = unverified.verify(&v1(KEY), now()).is_ok();
    assert_eq!(is_believed, plain::is_signed(&fields, KEY), "{fields:?}");
    assert_eq!(is_believed, unverified.is_signed(&v1(KEY)));
    // Whoever wrote this did not have the gateway's private key.
    if plain::value(&fields, "sign_type") == Some("RSA") {
        assert!(unverified.verify(&V2.credentials, now()).is_err());
    }
    for blank_left_out in [false, true] {
        signed_anew(&fields, blank_left_out);
    }
}

/// The form says what its fields say, in whatever order and escaping they come, and so does the string that a
/// signature is made over.
fn one_reading(form: &Form, fields: &plain::Fields) {
    let mut sorted = fields.clone();
    sorted.sort();
    let read: plain::Fields = form.fields().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    assert_eq!(read, sorted);
    let mut reversed = sorted.clone();
    reversed.reverse();
    for written in [plain::write(&sorted, false), plain::write(&reversed, true)] {
        assert_eq!(Form::parse(written.as_bytes()).as_ref(), Ok(form));
    }
    for (key, value) in fields {
        assert_eq!(form.get(key), Some(value.as_str()));
    }
    // Where the string is cut at every `&` behind which a field could begin, the same fields come out.
    let signed = plain::signed(fields, false);
    let string = plain::signing_string(fields, false);
    let begins_field = |piece: &&str| piece.split_once('=').is_some_and(|(key, _)| plain::is_key(key));
    assert_eq!(string.split('&').filter(begins_field).count(), signed.len(), "{string}");
}

/// What the merchant's key signs over these fields is believed and says what they say; what another key signs is not.
fn signed_anew(fields: &plain::Fields, blank_left_out: bool) {
    let mut fields = fields.clone();
    fields.retain(|(key, _)| key != "sign" && key != "sign_type");
    let sign = plain::sign(&fields, blank_left_out, KEY);
    let sign_says_all = sign == plain::sign(&fields, false, KEY);
    fields.push(("sign".into(), sign));
    let written = plain::write(&fields, false);
    let unverified = Unverified::parse(written.as_bytes()).expect("it could be read before it was signed anew");
    let notification = unverified.verify(&v1(KEY), now()).expect("it is signed");
    let value = |key| plain::value(&fields, key);
    assert_eq!(Some(notification.pid.as_str()), value("pid"));
    assert_eq!(Some(notification.out_trade_no.as_str()), value("out_trade_no"));
    assert_eq!(notification.trade_no.as_deref(), plain::said(&fields, "trade_no"));
    assert_eq!(notification.money.map(Amount::fen), value("money").and_then(plain::fen));
    assert_eq!(notification.payment, plain::payment(&fields));
    assert_eq!(notification.param.as_deref(), plain::said(&fields, "param"));
    assert!(!unverified.is_signed(&v1("another key")));
    // In which wrong way something is signed is looked for in one dialect.
    if sign_says_all {
        let diagnosis = diagnose(written.as_bytes(), &v1("another key"), [("1002", &Secret::new(KEY))]);
        assert_eq!(diagnosis.map(|diagnosis| diagnosis.way), Some(WrongWay::OtherMerchant));
    }
}

/// What a person is told is there whenever the encoding can be read, and never says more than the fields do.
fn told_to_people(data: &[u8], fields: Option<&plain::Fields>) {
    let _ = diagnose(data, &v1(KEY), [("1002", &Secret::new("another key"))]);
    let readable = readable(data);
    assert_eq!(readable.is_some(), decode_pairs(data).is_ok());
    for key in ["pid", "out_trade_no", "trade_no"] {
        let glimpse = glimpse(data, key);
        if let Some(fields) = fields.filter(|fields| plain::has_one_reading(fields)) {
            assert!(glimpse.is_none() || glimpse.as_deref() == plain::value(fields, key), "{key}: {glimpse:?}");
        }
    }
}
