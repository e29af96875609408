-- Version 2: what it takes to make an order payable, to ask about it, to refund it, and to tell of it.

-- The language in which a buyer is written to; the configured one where it is not known.
ALTER TABLE users ADD COLUMN language TEXT CHECK (language IN ('zh', 'en'));

-- Where the buyer pays: a page, the content of a QR code, or a link that opens an app.
ALTER TABLE orders ADD COLUMN pay_kind TEXT CHECK (pay_kind IN ('url', 'qrcode', 'urlscheme'));
ALTER TABLE orders ADD COLUMN pay_url TEXT;

-- The outbox now has two kinds of addressee: the buyer (telegram) and the bot (event).
CREATE TABLE outbox_2 (
    id INTEGER PRIMARY KEY,
    order_id INTEGER NOT NULL REFERENCES orders,
    kind TEXT NOT NULL CHECK (kind IN ('settled', 'review', 'refunded')),
    channel TEXT NOT NULL DEFAULT 'telegram' CHECK (channel IN ('telegram', 'event')),
    created_at_ms INTEGER NOT NULL,
    due_at_ms INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    state TEXT NOT NULL DEFAULT 'due' CHECK (state IN ('due', 'sent', 'failed')),
    error TEXT,
    finished_at_ms INTEGER,
    -- When a person last asked for it again: its time counts from then.
    retried_at_ms INTEGER,
    UNIQUE (order_id, kind, channel)
) STRICT;
INSERT INTO outbox_2 (id, order_id, kind, created_at_ms, due_at_ms, attempts, state, error)
    SELECT id, order_id, kind, created_at_ms, due_at_ms, attempts, state, error FROM outbox;
DROP TABLE outbox;
ALTER TABLE outbox_2 RENAME TO outbox;
CREATE INDEX outbox_due ON outbox (channel, due_at_ms) WHERE state = 'due';

-- Orders that the gateway will be asked about. A row stays behind when its order is settled, and goes when its turn comes: the way of
-- a payment is not the place to tidy up.
CREATE TABLE reconciliation (
    order_id INTEGER PRIMARY KEY REFERENCES orders,
    merchant TEXT NOT NULL,
    -- How many times of the schedule have passed.
    step INTEGER NOT NULL DEFAULT 0,
    due_at_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX reconciliation_due ON reconciliation (merchant, due_at_ms);
INSERT INTO reconciliation (order_id, merchant, due_at_ms)
    SELECT id, merchant, created_at_ms FROM orders WHERE status = 'pending';

-- What gateways answered when they were asked about an order. What settles an order is a receipt as well.
CREATE TABLE answers (
    id INTEGER PRIMARY KEY,
    order_id INTEGER NOT NULL REFERENCES orders,
    asked_at_ms INTEGER NOT NULL,
    -- `reconcile`, `notify`, `return`, `refund`: what caused the question.
    cause TEXT NOT NULL,
    answer TEXT NOT NULL,
    detail TEXT NOT NULL
) STRICT;
CREATE INDEX answers_by_order ON answers (order_id);

-- Refunds, from the intent on: it is written down before the gateway is asked.
CREATE TABLE refunds (
    order_id INTEGER PRIMARY KEY REFERENCES orders,
    reason TEXT NOT NULL,
    -- `requested`: the gateway may have been asked. `unclear`: it was, and nobody knows its answer.
    state TEXT NOT NULL CHECK (state IN ('requested', 'refused', 'unclear', 'done')),
    answer TEXT,
    -- Whether the gateway itself says that the payment is refunded.
    proved INTEGER NOT NULL DEFAULT 0 CHECK (proved IN (0, 1)),
    requested_at_ms INTEGER NOT NULL,
    changed_at_ms INTEGER NOT NULL
) STRICT;

CREATE TRIGGER refunds_are_done_once BEFORE UPDATE OF state ON refunds WHEN OLD.state = 'done' AND NEW.state <> 'done'
BEGIN
    SELECT RAISE(ABORT, 'a refund that is done stays done');
END;

-- Requests of the bot that carried a key, so that a repeated one does nothing more.
CREATE TABLE idempotency (
    key TEXT PRIMARY KEY,
    fingerprint TEXT NOT NULL,
    order_id INTEGER REFERENCES orders,
    ledger_id INTEGER REFERENCES ledger,
    credits_after INTEGER,
    created_at_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What the service remembers over a restart, by name.
CREATE TABLE memory (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
