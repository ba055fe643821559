package store

import (
	"database/sql"
	"testing"
)

// RawForTest opens the database file without the store.
func RawForTest(t *testing.T, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// Statements splits a migration.
var Statements = statements

// LimitFailures shrinks for a test what a repository may fill with failures.
func LimitFailures(t *testing.T, signatures, hits, lessons int) {
	t.Helper()
	s, h, l := maxSignatures, maxHits, maxLessons
	maxSignatures, maxHits, maxLessons = signatures, hits, lessons
	t.Cleanup(func() { maxSignatures, maxHits, maxLessons = s, h, l })
}
