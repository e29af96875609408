//! The schema of a database, object by object, against the one that this program's migrations make.
//!
//! A file's schema is code: a trigger mints credits, a view stands in a table's place, a unique index refuses payments. So it is compared
//! before any of it can run, and every difference counts.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::Connection;
use rusqlite::types::ValueRef;

use crate::store::{Deviation, SchemaDifference};

/// Tables that SQLite makes for the query planner when somebody runs ANALYZE. They change how fast a query is, not what it returns.
const STATISTICS: [(&str, &str); 2] = [
    ("sqlite_stat1", "CREATE TABLE sqlite_stat1(tbl,idx,stat)"),
    ("sqlite_stat4", "CREATE TABLE sqlite_stat4(tbl,idx,neq,nlt,ndlt,sample)"),
];

/// A table, index, trigger or view, as `sqlite_schema` has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Object {
    kind: String,
    pub(super) name: String,
    table: String,
    /// Missing for indexes that belong to a constraint.
    pub(super) sql: Option<String>,
    /// The first page of its content; 0 where it has none.
    root: i64,
}

impl Object {
    pub(super) fn is_trigger(&self) -> bool {
        self.kind == "trigger"
    }

    /// Whether this object is defined as that one. Where its content is in the file is each file's own affair.
    fn is_defined_as(&self, known: &Self) -> bool {
        self.table == known.table && self.sql == known.sql && (self.root == 0) == (known.root == 0)
    }

    fn is_statistics(&self) -> bool {
        let own = (self.name.as_str(), self.sql.as_deref().unwrap_or_default());
        self.kind == "table" && self.table == self.name && STATISTICS.contains(&own)
    }

    /// The statement that removes an index which somebody added. Other objects take more thought.
    fn removal(&self) -> Option<String> {
        let is_added = self.kind == "index" && self.sql.is_some();
        is_added.then(|| format!("DROP INDEX \"{}\";", self.name.replace('"', "\"\"")))
    }
}

fn difference(deviation: Deviation, object: &Object) -> SchemaDifference {
    let removal = object.removal().filter(|_| deviation == Deviation::Foreign);
    SchemaDifference { deviation, kind: object.kind.clone(), name: object.name.clone(), removal }
}

/// All objects of a database, by name.
pub(super) fn read(db: &Connection) -> rusqlite::Result<Vec<Object>> {
    let mut rows =
        db.prepare("SELECT type, name, tbl_name, rootpage, sql FROM main.sqlite_schema ORDER BY name, type")?;
    let text = |value: ValueRef| text(value).unwrap_or_default();
    rows.query_map([], |row| {
        Ok(Object {
            kind: text(row.get_ref(0)?),
            name: text(row.get_ref(1)?),
            table: text(row.get_ref(2)?),
            root: row.get_ref(3)?.as_i64().unwrap_or(0),
            sql: self::text(row.get_ref(4)?),
        })
    })?
    .collect()
}

/// A value of `sqlite_schema`. SQLite believes values of other types as well; their spelling here equals no text of ours.
fn text(value: ValueRef) -> Option<String> {
    match value {
        ValueRef::Null => None,
        ValueRef::Text(bytes) => Some(str::from_utf8(bytes).map_or_else(|_| format!("{value:?}"), str::to_owned)),
        other => Some(format!("{other:?}")),
    }
}

/// Every object that is foreign, missing or changed, by name.
pub(super) fn compare(found: &[Object], known: &[Object]) -> Vec<SchemaDifference> {
    let mut missing: BTreeMap<_, _> = known.iter().map(|object| ((&object.kind, &object.name), object)).collect();
    let mut roots = BTreeSet::new();
    let mut differences = Vec::new();
    for object in found {
        // A write to one of two objects with the same content changes both.
        let is_alone = object.root == 0 || roots.insert(object.root);
        let deviation = match missing.remove(&(&object.kind, &object.name)) {
            Some(known) if is_alone && object.is_defined_as(known) => continue,
            Some(_) => Deviation::Changed,
            None if is_alone && object.is_statistics() => continue,
            None => Deviation::Foreign,
        };
        differences.push(difference(deviation, object));
    }
    differences.extend(missing.values().map(|object| difference(Deviation::Missing, object)));
    differences.sort_by(|one, other| one.name.cmp(&other.name));
    differences
}

#[cfg(test)]
mod tests;
