//! Rows that are written many to a statement: most of what a small write costs is its statement.

use rusqlite::{Connection, Statement, ToSql};

/// An insertion of any number of rows.
pub(super) struct Insert {
    /// For each of [`Insert::ROWS`].
    texts: [String; Self::ROWS.len()],
}

impl Insert {
    /// How many rows a statement has: few numbers, since each makes a statement to be kept.
    const ROWS: [usize; 3] = [16, 4, 1];

    /// `into` is the beginning of the statement, `row` the values of each row, `end` what follows them.
    pub(super) fn new(into: &str, row: &str, end: &str) -> Self {
        let text = |rows| format!("{into} VALUES {} {end}", vec![row; rows].join(", "));
        Self { texts: Self::ROWS.map(text) }
    }

    /// Inserts rows in their order; `values` are those of one row.
    pub(super) fn run<T, const N: usize>(
        &self,
        db: &Connection,
        rows: &[T],
        values: impl Fn(&T) -> [&dyn ToSql; N],
    ) -> rusqlite::Result<()> {
        let mut left = rows;
        for (text, most) in self.texts.iter().zip(Self::ROWS) {
            let (now, later) = left.split_at(left.len() - left.len() % most);
            left = later;
            if now.is_empty() {
                continue;
            }
            let mut insert = db.prepare_cached(text)?;
            for chunk in now.chunks(most) {
                bind(&mut insert, chunk.iter().flat_map(&values))?;
                insert.raw_execute()?;
            }
        }
        Ok(())
    }
}

fn bind<'a>(statement: &mut Statement, values: impl Iterator<Item = &'a dyn ToSql>) -> rusqlite::Result<()> {
    for (at, value) in values.enumerate() {
        statement.raw_bind_parameter(at + 1, value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_rows_is_inserted_once_and_in_order() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch("CREATE TABLE numbers (id INTEGER PRIMARY KEY, number INTEGER)").unwrap();
        let insert = Insert::new("INSERT INTO numbers (number)", "(?)", "");
        let mut expected = Vec::new();
        for count in 0..70 {
            let rows: Vec<i64> = (0..count).collect();
            insert.run(&db, &rows, |row| [row]).unwrap();
            expected.extend(rows);
        }
        let mut all = db.prepare("SELECT number FROM numbers ORDER BY id").unwrap();
        let found: Vec<i64> = all.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        assert_eq!(found, expected);
    }
}
