-- Version 3: what makes paying an order cheap.

-- SQLite builds a table in memory each time that it looks for a value in a list of three or more. The same rules, said one by one;
-- what the tables hold does not change, so they need not be written anew (https://sqlite.org/lang_altertable.html#otheralter).
PRAGMA writable_schema = ON;
UPDATE sqlite_schema SET sql = replace(sql,
    'CHECK (status IN (''pending'', ''paid'', ''review'', ''refunded'', ''cancelled''))',
    'CHECK (status = ''pending'' OR status = ''paid'' OR status = ''review'' OR status = ''refunded'' OR status = ''cancelled'')')
    WHERE type = 'table' AND name = 'orders';
UPDATE sqlite_schema SET sql = replace(sql,
    'CHECK (settled_by IN (''notify'', ''reconcile'', ''manual''))',
    'CHECK (settled_by = ''notify'' OR settled_by = ''reconcile'' OR settled_by = ''manual'')')
    WHERE type = 'table' AND name = 'orders';
UPDATE sqlite_schema SET sql = replace(sql,
    'CHECK (pay_kind IN (''url'', ''qrcode'', ''urlscheme''))',
    'CHECK (pay_kind = ''url'' OR pay_kind = ''qrcode'' OR pay_kind = ''urlscheme'')')
    WHERE type = 'table' AND name = 'orders';
UPDATE sqlite_schema SET sql = replace(sql,
    'CHECK (kind IN (''order'', ''refund'', ''grant'', ''spend''))',
    'CHECK (kind = ''order'' OR kind = ''refund'' OR kind = ''grant'' OR kind = ''spend'')')
    WHERE type = 'table' AND name = 'ledger';
UPDATE sqlite_schema SET sql = replace(sql,
    'CHECK (source IN (''notify'', ''reconcile'', ''manual''))',
    'CHECK (source = ''notify'' OR source = ''reconcile'' OR source = ''manual'')')
    WHERE type = 'table' AND name = 'receipts';
UPDATE sqlite_schema SET sql = replace(replace(sql,
    'CHECK (kind IN (''settled'', ''review'', ''refunded''))',
    'CHECK (kind = ''settled'' OR kind = ''review'' OR kind = ''refunded'')'),
    'CHECK (state IN (''due'', ''sent'', ''failed''))',
    'CHECK (state = ''due'' OR state = ''sent'' OR state = ''failed'')')
    WHERE type = 'table' AND name = 'outbox';
PRAGMA writable_schema = RESET;

-- An order's entry is found by its order. By user, this index only has what belongs to no order: with all entries in it, each payment
-- had to write to another page of it.
DROP INDEX ledger_by_user;
CREATE INDEX ledger_by_user ON ledger (telegram_id) WHERE order_id IS NULL;
