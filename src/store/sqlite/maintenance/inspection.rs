//! Looks at a database that others work with, and changes nothing.

use super::audit::integrity;
use super::{DatabaseFile, OpenError, schema};
use crate::store::sqlite::blocking;

/// What a database file is like.
#[derive(Clone, Debug)]
pub(crate) struct Inspection {
    /// The version of its schema.
    pub version: u32,
    /// The newest version that there is.
    pub known: u32,
    /// What the engine's own check finds.
    pub damages: Vec<String>,
}

impl DatabaseFile {
    /// Whether the database is whole, and of which version; [`OpenError::Missing`] as well where nothing is in it yet.
    pub(crate) async fn inspect(self) -> Result<Inspection, OpenError> {
        let path = self.path;
        blocking(move || {
            let (db, version) = schema::open_unchanging(&path)?;
            if version == 0 {
                return Err(OpenError::Missing(path));
            }
            // Before the engine's own check, which evaluates what the schema says.
            let differences = schema::differences(&db, version)?;
            if !differences.is_empty() {
                return Err(OpenError::OtherSchema { path, differences: differences.into() });
            }
            Ok(Inspection { version, known: schema::VERSION, damages: integrity(&db) })
        })
        .await
    }

    /// Whether a notification about this order was refused, and is still kept.
    pub(crate) async fn has_refused(self, order_no: String) -> Result<bool, OpenError> {
        let path = self.path;
        blocking(move || {
            let (db, _) = schema::open_unchanging(&path)?;
            let sql = "SELECT EXISTS (SELECT 1 FROM rejections WHERE order_no = ?)";
            Ok(db.query_row(sql, [order_no], |row| row.get(0))?)
        })
        .await
    }
}
