//! One request's view of the transaction it shares with others: statements, events and lines of
//! the log. Nothing here commits; only the writer does.

use chrono::{DateTime, Utc};
use rusqlite::{Connection, Params, Row};
use serde_json::{Map, Value};

use super::fail::Res;
use super::row::{Mandate, micros};
use crate::domain::record::{self, Head};
use crate::store::Committed;

/// The transaction, as one request sees it.
pub struct Txn<'c> {
    /// The one writing connection.
    pub conn: &'c Connection,
    /// What the sink hears of if the commit succeeds.
    pub out: Vec<Committed>,
}

/// A constant name and what it is about.
#[derive(Clone, Copy, Debug, Default)]
pub struct About<'a> {
    /// Schedule.
    pub schedule: Option<&'a str>,
    /// Mandate.
    pub mandate: Option<&'a str>,
}

impl<'c> Txn<'c> {
    /// The view on a connection that is inside a transaction.
    pub fn new(conn: &'c Connection) -> Self {
        Self { conn, out: Vec::new() }
    }

    /// Runs a statement that is kept prepared; gives the number of rows it changed.
    pub fn exec(&self, sql: &str, params: impl Params) -> Res<usize> {
        Ok(self.conn.prepare_cached(sql)?.execute(params)?)
    }

    /// The first row, if there is one.
    pub fn first<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Res<Option<T>> {
        first(self.conn, sql, params, read)
    }

    /// Every row.
    pub fn all<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Res<Vec<T>> {
        all(self.conn, sql, params, read)
    }

    /// Records an event.
    pub fn event(&self, at: DateTime<Utc>, kind: &str, about: About<'_>, details: Value) -> Res<()> {
        let details = (!details.is_null()).then(|| details.to_string());
        self.exec(
            "INSERT INTO event(at, kind, schedule, mandate, details) VALUES(?1, ?2, ?3, ?4, ?5)",
            (micros(at), kind, about.schedule, about.mandate, details),
        )?;
        Ok(())
    }

    /// Seals lines onto a mandate's log. The head moves in `mandate`; the caller saves it.
    pub fn lines(
        &mut self,
        mandate: &mut Mandate,
        fields: impl IntoIterator<Item = Map<String, Value>>,
    ) -> Res<()> {
        let mut head = Head { seq: mandate.seq, crc: mandate.crc };
        self.seal(&mandate.id, mandate.n, &mut head, fields)?;
        (mandate.seq, mandate.crc) = (head.seq, head.crc);
        Ok(())
    }

    /// As [`Txn::lines`], for whoever knows no more than the mandate's id, its number and its log's head.
    pub fn seal(
        &mut self,
        id: &str,
        number: i64,
        head: &mut Head,
        fields: impl IntoIterator<Item = Map<String, Value>>,
    ) -> Res<()> {
        let mut made = Vec::new();
        for fields in fields {
            let line = record::seal(head, fields);
            self.exec(
                "INSERT INTO walrec(mandate, seq, line) VALUES(?1, ?2, ?3)",
                (number, head.seq.cast_signed(), &line),
            )?;
            made.push((head.seq, line));
        }
        if let Some(Committed::Lines { mandate: last, lines }) = self.out.last_mut()
            && *last == *id
        {
            lines.append(&mut made);
        } else if !made.is_empty() {
            self.out.push(Committed::Lines { mandate: id.to_owned(), lines: made });
        }
        Ok(())
    }
}

/// The first row, if there is one.
pub fn first<T>(
    conn: &Connection,
    sql: &str,
    params: impl Params,
    read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
) -> Res<Option<T>> {
    let mut statement = conn.prepare_cached(sql)?;
    let mut rows = statement.query(params)?;
    Ok(rows.next()?.map(read).transpose()?)
}

/// Every row.
pub fn all<T>(
    conn: &Connection,
    sql: &str,
    params: impl Params,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Res<Vec<T>> {
    let mut statement = conn.prepare_cached(sql)?;
    let rows = statement.query_map(params, read)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}
