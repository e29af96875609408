#!/usr/bin/env python3
"""A bot's half of webhookctl's local API, to copy from: python3's own library is all it needs.

    export WEBHOOKCTL_API=http://127.0.0.1:5003 WEBHOOKCTL_TOKEN=… WEBHOOKCTL_EVENT_SECRET=whsec_…
    bot.py order ID PACKAGE | credits ID | spend ID CREDITS [KEY] | grant ID CREDITS REASON [KEY] | events PORT

KEY is the idempotency key: take the number of the Telegram update, and a message that is handled twice is charged once."""
import base64, hashlib, hmac, http.server, json, os, sys, time, urllib.error, urllib.request, uuid

local = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy gets to see the token

def api(method, path, body=None, key=None):
    headers = {"Authorization": "Bearer " + os.environ["WEBHOOKCTL_TOKEN"]}
    if method == "POST":
        headers |= {"Content-Type": "application/json", "Idempotency-Key": key or str(uuid.uuid4())}
    request = urllib.request.Request(os.environ["WEBHOOKCTL_API"] + path, body and json.dumps(body).encode(), headers, method=method)
    for pause in (1, 2, 4, None):  # the same key again: whatever happened to the first, it is done once
        try:
            with local.open(request, timeout=40) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            if error.code != 503 or pause is None:
                sys.exit(json.load(error)["detail"])
        except OSError as error:
            if pause is None:
                sys.exit(f"no answer: {error}")
        time.sleep(pause)

def is_genuine(headers, body):
    """Whether an event is signed as Standard Webhooks says, and not an old one sent again."""
    secret = base64.b64decode(os.environ["WEBHOOKCTL_EVENT_SECRET"].removeprefix("whsec_"))
    sent, stamp = headers.get("webhook-timestamp", ""), headers.get("webhook-id", "") + "." + headers.get("webhook-timestamp", "")
    expected = base64.b64encode(hmac.digest(secret, stamp.encode() + b"." + body, hashlib.sha256))
    signatures = [each[3:].encode() for each in headers.get("webhook-signature", "").split() if each.startswith("v1,")]
    is_fresh = sent.isascii() and sent.isdigit() and abs(time.time() - int(sent)) <= 300
    return is_fresh and any([hmac.compare_digest(each, expected) for each in signatures])

class Events(http.server.BaseHTTPRequestHandler):
    timeout = 10

    def do_POST(self):
        body = self.rfile.read(max(0, min(int(self.headers.get("Content-Length", 0)), 65536)))
        genuine = is_genuine(self.headers, body)
        if genuine:  # an event may come twice: remember its webhook-id in your database, and answer when that is safe
            print(self.headers["webhook-id"], json.dumps(json.loads(body), ensure_ascii=False), flush=True)
        self.send_response(204 if genuine else 401)
        self.end_headers()

def order(user, package):
    made = api("POST", "/v1/orders", {"telegram_id": int(user), "package": package})
    print(made["order_no"], made["pay_url"] or made["remark"])

def credits(user): print(api("GET", f"/v1/users/{int(user)}")["credits"])
def spend(user, count, key=None): print(api("POST", f"/v1/users/{int(user)}/spend", {"credits": int(count)}, key)["credits"])
def grant(user, count, reason, key=None):
    print(api("POST", f"/v1/users/{int(user)}/grant", {"credits": int(count), "reason": reason}, key)["credits"])

def events(port):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Events)
    print(f"events at http://127.0.0.1:{server.server_port}/", flush=True)
    server.serve_forever()

commands = {"order": order, "credits": credits, "spend": spend, "grant": grant, "events": events}
if len(sys.argv) < 3 or sys.argv[1] not in commands:
    sys.exit(__doc__)
commands[sys.argv[1]](*sys.argv[2:])
