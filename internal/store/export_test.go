package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
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

// QueryForTest reads one value.
func QueryForTest(s *Store, query string, into any) error {
	return s.read.QueryRow(query).Scan(into)
}

// Statements splits a migration.
var Statements = statements

// RunsQuery is what [Store.Runs] asks the database.
func RunsQuery(f RunFilter) (string, []any) { return f.query() }

// TrendQuery is what [Store.Trend] asks the database.
func TrendQuery(p Place, limit int) (string, []any) { return p.trend(limit) }

// LimitFailures shrinks for a test what a repository may fill with failures.
func LimitFailures(t *testing.T, signatures, hits, lessons int) {
	t.Helper()
	s, h, l := maxSignatures, maxHits, maxLessons
	maxSignatures, maxHits, maxLessons = signatures, hits, lessons
	t.Cleanup(func() { maxSignatures, maxHits, maxLessons = s, h, l })
}

// LimitDecisions shrinks for a test how many decisions of a repository are kept.
func LimitDecisions(t *testing.T, n int) {
	t.Helper()
	was := maxDecisions
	maxDecisions = n
	t.Cleanup(func() { maxDecisions = was })
}

// LimitFinding shrinks for a test how much of a log one search reads.
func LimitFinding(t *testing.T, n int64) {
	t.Helper()
	was := maxFound
	maxFound = n
	t.Cleanup(func() { maxFound = was })
}

// Failing makes a store over the database file, each of whose steps (statements,
// rows, begins and commits) asks first whether it fails.
func Failing(t *testing.T, path, logs string, fails func() error) *Store {
	t.Helper()
	plain, err := sql.Open("sqlite", "")
	if err != nil {
		t.Fatal(err)
	}
	dsn := "file:" + path + "?_pragma=busy_timeout(10000)&_pragma=foreign_keys(1)"
	s := &Store{dialect: SQLite, logDir: logs, jobLog: LogLimit, runLog: RunLogLimit, check: newCheckpointer(RawForTest(t, path))}
	s.write, s.read = sql.OpenDB(&failing{plain.Driver(), dsn + "&_txlock=immediate", fails}), sql.OpenDB(&failing{plain.Driver(), dsn, fails})
	s.write.SetMaxOpenConns(1)
	plain.Close()
	return s
}

type failing struct {
	under driver.Driver
	dsn   string
	fails func() error
}

func (f *failing) Driver() driver.Driver { return f.under }

func (f *failing) Connect(context.Context) (driver.Conn, error) {
	c, err := f.under.Open(f.dsn)
	if err != nil {
		return nil, err
	}
	return &failingConn{c, f.fails}, nil
}

type failingConn struct {
	driver.Conn
	fails func() error
}

func (c *failingConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if err := c.fails(); err != nil {
		return nil, err
	}
	return c.Conn.(driver.ExecerContext).ExecContext(ctx, query, args)
}

func (c *failingConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if err := c.fails(); err != nil {
		return nil, err
	}
	rows, err := c.Conn.(driver.QueryerContext).QueryContext(ctx, query, args)
	if err != nil {
		return nil, err
	}
	return &failingRows{rows, c.fails}, nil
}

func (c *failingConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if err := c.fails(); err != nil {
		return nil, err
	}
	tx, err := c.Conn.(driver.ConnBeginTx).BeginTx(ctx, opts)
	return &failingTx{tx, c.fails}, err
}

type failingTx struct {
	driver.Tx
	fails func() error
}

func (t *failingTx) Commit() error {
	if err := t.fails(); err != nil {
		return errors.Join(err, t.Tx.Rollback())
	}
	return t.Tx.Commit()
}

type failingRows struct {
	driver.Rows
	fails func() error
}

func (r *failingRows) Next(dest []driver.Value) error {
	if err := r.fails(); err != nil {
		return err
	}
	return r.Rows.Next(dest)
}

// LimitTests shrinks for a test how many tests are kept, of a repository and in all,
// and how many failures.
func LimitTests(t *testing.T, tests, all, failures int) {
	t.Helper()
	a, b, c := maxTests, maxTestsOfAll, maxTestFailures
	maxTests, maxTestsOfAll, maxTestFailures = tests, all, failures
	t.Cleanup(func() { maxTests, maxTestsOfAll, maxTestFailures = a, b, c })
}

// LimitImports shrinks for a test how many imported executions are known by key.
func LimitImports(t *testing.T, n int) {
	t.Helper()
	was := maxImports
	maxImports = n
	t.Cleanup(func() { maxImports = was })
}
