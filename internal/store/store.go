// Package store holds all SQL: what happened and what is known, in one SQLite
// file or in PostgreSQL.
//
// # Two databases, one text
//
// The same migrations and, but for three marked places, the same statements run
// on both: TEXT ids made by us, BIGINT milliseconds, JSON as TEXT, $1. The
// conformance suite (suite_test.go) runs on SQLite always and on a real
// PostgreSQL server where its programs are installed.
//
// # Several servers
//
// Servers that share a PostgreSQL database hold repositories by leases
// (leases.go), and what one records wakes those who watch at the others
// (listen.go). What a server has open when it is stopped does not hold up the
// others for long: the database ends transactions in which nothing happens.
//
// # Writers
//
// SQLite has one writer at a time. Within a process all writes go over one
// connection whose transactions begin IMMEDIATE; between processes SQLite's own
// lock is waited for up to ten seconds, so two hearth processes on one file are
// fine. Readers have connections of their own and, in WAL mode, never wait.
//
// # What is written once
//
// A completed run, job or step is never changed again: every update carries
// "status <> 'completed'", and one that finds nothing to change reports
// [ErrTerminal]. Jobs carry a fence besides: a write for an attempt older than
// the row's is refused with [ErrFenced].
//
// # The event log
//
// Records (package ci) are appended with a cursor that grows without gaps in
// the order of commits, on both databases: the number is taken from a counter
// row inside the transaction, which holds every later writer back until it is
// committed. Whoever follows the log with a cursor therefore misses nothing.
//
// Log lines are not in the database. They are appended as records, one JSON
// object a line, to logs/<run id>/<job id>.ndjson below the log directory; the
// tables logs and log_steps point into those files. See [Recorder].
//
// # Files
//
// One file a group of tables: events.go, runs.go, records.go with recorder.go
// and logs.go, queue.go, predictions.go, decisions.go, signatures.go,
// knowledge.go, sessions.go, facts.go; retention.go removes from most of them.
package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite" // registers "sqlite"
)

// Errors that callers tell apart.
var (
	// ErrNotFound: there is no such row.
	ErrNotFound = errors.New("not found")
	// ErrTerminal: it is completed already, and that is written once.
	ErrTerminal = errors.New("already completed")
	// ErrFenced: a newer attempt owns it.
	ErrFenced = errors.New("a newer attempt has taken over")
)

// incremental is SQLite's number of the auto_vacuum mode in which pages that
// became free are given back when asked for.
const incremental = 2

// Dialect names the database behind a Store.
type Dialect string

// The two dialects.
const (
	SQLite     Dialect = "sqlite"
	PostgreSQL Dialect = "postgresql"
)

// Store is the database and the log directory. It is safe for concurrent use.
type Store struct {
	write   *sql.DB
	read    *sql.DB
	check   *checkpointer // of SQLite
	dialect Dialect
	logDir  string
	hub     hub
	// Of PostgreSQL: what other processes record.
	listener *listener
	// How large log files get: of a job, and of a run's jobs together.
	jobLog, runLog int64
}

// An Option changes how [Open] sets a Store up.
type Option func(*Store)

// WithLogs says where log files go. Without it they go to "logs" beside the
// SQLite file; with PostgreSQL there is no default, and recording a log line
// without a directory is an error.
func WithLogs(dir string) Option { return func(s *Store) { s.logDir = dir } }

// WithLogLimits says how many bytes of log a job may fill, and the jobs of a run
// together. Without it that is LogLimit and RunLogLimit.
func WithLogLimits(job, run int64) Option {
	return func(s *Store) { s.jobLog, s.runLog = job, run }
}

// Open opens the database and brings its tables up to date. dsn is a
// postgres:// or postgresql:// URL, or the path of an SQLite file, which is
// made, with its directory, where it is missing.
func Open(ctx context.Context, dsn string, options ...Option) (*Store, error) {
	s := &Store{jobLog: LogLimit, runLog: RunLogLimit}
	if strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://") {
		s.dialect = PostgreSQL
		cfg, err := pgx.ParseConfig(dsn)
		if err != nil {
			return nil, errors.New("open PostgreSQL: the URL cannot be read; its form is postgres://user:password@host:5432/database")
		}
		if cfg.RuntimeParams["idle_in_transaction_session_timeout"] == "" {
			cfg.RuntimeParams["idle_in_transaction_session_timeout"] = idleInTransaction
		}
		db := stdlib.OpenDB(*cfg)
		s.listener = &listener{config: cfg, hub: &s.hub}
		db.SetMaxOpenConns(16)
		s.write, s.read = db, db
	} else {
		s.dialect = SQLite
		if err := s.openSQLite(dsn); err != nil {
			return nil, err
		}
	}
	for _, o := range options {
		o(s)
	}
	if err := s.migrate(ctx); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Store) openSQLite(path string) error {
	if path == "" {
		return errors.New("open store: no path given")
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("open store %s: %w", path, err)
	}
	dir := filepath.Dir(abs)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("open store: make its directory: %w", err)
	}
	s.logDir = filepath.Join(dir, "logs")
	// The file is made here, private, since it holds what people's builds print.
	f, err := os.OpenFile(abs, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	f.Close()
	dsn := func(extra string) string {
		u := url.URL{Scheme: "file", Path: abs}
		// Files made from now on can shrink: see Shrink. It has to be said first.
		return u.String() + "?_pragma=auto_vacuum(" + strconv.Itoa(incremental) +
			")&_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)&_pragma=foreign_keys(1)" + extra
	}
	if s.write, err = sql.Open("sqlite", dsn("&_txlock=immediate&_pragma=wal_autocheckpoint("+checkpointBound+")")); err != nil {
		return fmt.Errorf("open store %s: %w", abs, err)
	}
	s.write.SetMaxOpenConns(1)
	if s.read, err = sql.Open("sqlite", dsn("&_pragma=query_only(1)")); err != nil {
		s.write.Close()
		return fmt.Errorf("open store %s: %w", abs, err)
	}
	s.read.SetMaxOpenConns(4)
	copies, err := sql.Open("sqlite", dsn("&_pragma=wal_autocheckpoint(0)"))
	if err != nil {
		s.write.Close()
		s.read.Close()
		return fmt.Errorf("open store %s: %w", abs, err)
	}
	s.check = newCheckpointer(copies)
	return nil
}

// Close closes the database. Recorders must be closed before.
func (s *Store) Close() error {
	s.listener.close()
	err := errors.Join(s.check.close(), s.write.Close())
	if s.read != s.write {
		err = errors.Join(err, s.read.Close())
	}
	return err
}

// Dialect says which database this is.
func (s *Store) Dialect() Dialect { return s.dialect }

// LogDir is the directory below which log files are; "" if there is none.
func (s *Store) LogDir() string { return s.logDir }

// Ping reports whether the database answers.
func (s *Store) Ping(ctx context.Context) error {
	if err := s.write.PingContext(ctx); err != nil {
		return fmt.Errorf("store does not answer: %w", err)
	}
	return nil
}

//go:embed migrations/*.sql
var migrations embed.FS

// migrate applies, in order of name, each file of migrations/ that has not been
// applied, each in a transaction. Two processes that start at once are kept
// apart by the database: by SQLite's write lock, by an advisory lock in
// PostgreSQL.
func (s *Store) migrate(ctx context.Context) error {
	entries, err := fs.ReadDir(migrations, "migrations")
	if err != nil {
		return fmt.Errorf("migrations: %w", err)
	}
	sort.Slice(entries, func(i, j int) bool { return entries[i].Name() < entries[j].Name() })
	return s.tx(ctx, "migrate", func(tx *sql.Tx) error {
		if s.dialect == PostgreSQL {
			if _, err := tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock(7305790)`); err != nil {
				return err
			}
		}
		if _, err := tx.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS migrations (name TEXT PRIMARY KEY, applied BIGINT NOT NULL)`); err != nil {
			return err
		}
		known := map[string]bool{}
		for _, e := range entries {
			known[e.Name()] = true
		}
		applied := map[string]bool{}
		rows, err := tx.QueryContext(ctx, `SELECT name FROM migrations`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var name string
			if err := rows.Scan(&name); err != nil {
				return err
			}
			if !known[name] {
				return fmt.Errorf("the database was made by a newer hearth (migration %s): use that one, or another database", name)
			}
			applied[name] = true
		}
		if err := rows.Err(); err != nil {
			return err
		}
		rows.Close()
		for _, e := range entries {
			if applied[e.Name()] {
				continue
			}
			text, err := fs.ReadFile(migrations, "migrations/"+e.Name())
			if err != nil {
				return err
			}
			for _, stmt := range statements(string(text)) {
				if _, err := tx.ExecContext(ctx, stmt); err != nil {
					return fmt.Errorf("%s: %w\n%s", e.Name(), err, stmt)
				}
			}
			if _, err := tx.ExecContext(ctx, `INSERT INTO migrations (name, applied) VALUES ($1, $2)`, e.Name(), time.Now().UnixMilli()); err != nil {
				return err
			}
		}
		return nil
	})
}

// statements splits a migration at the semicolons that end a line; comments are
// whole lines.
func statements(text string) []string {
	var out []string
	var b strings.Builder
	for line := range strings.Lines(text) {
		if strings.HasPrefix(strings.TrimSpace(line), "--") {
			continue
		}
		b.WriteString(line)
		if strings.HasSuffix(strings.TrimSpace(line), ";") {
			out = append(out, strings.TrimSuffix(strings.TrimSpace(b.String()), ";"))
			b.Reset()
		}
	}
	if rest := strings.TrimSpace(b.String()); rest != "" {
		out = append(out, rest)
	}
	return out
}

// tx runs fn in a write transaction; what names it in errors. fn's error rolls
// it back and is passed on wrapped.
func (s *Store) tx(ctx context.Context, what string, fn func(*sql.Tx) error) error {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("store: %s: begin: %w", what, err)
	}
	if err := fn(tx); err != nil {
		tx.Rollback()
		return fmt.Errorf("store: %s: %w", what, err)
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("store: %s: commit: %w", what, err)
	}
	return nil
}

// take adds n to a counter and returns its new value. Within a transaction it
// holds back every other taker of that counter until the commit.
func take(ctx context.Context, tx *sql.Tx, counter string, n int64) (int64, error) {
	var v int64
	err := tx.QueryRowContext(ctx, `INSERT INTO counters (name, n) VALUES ($1, $2)
		ON CONFLICT (name) DO UPDATE SET n = counters.n + excluded.n RETURNING n`, counter, n).Scan(&v)
	return v, err
}

// querier is what *sql.DB and *sql.Tx have in common.
type querier interface {
	ExecContext(context.Context, string, ...any) (sql.Result, error)
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
	QueryRowContext(context.Context, string, ...any) *sql.Row
}

// collect reads all rows of a query with scan.
func collect[T any](ctx context.Context, q querier, scan func(*sql.Rows) (T, error), query string, args ...any) ([]T, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, rows.Err()
}

// changed reports whether a statement changed at least one row.
func changed(res sql.Result, err error) (bool, error) {
	if err != nil {
		return false, err
	}
	n, err := res.RowsAffected()
	return n > 0, err
}

// clean makes a text that came from outside storable: PostgreSQL takes neither
// invalid UTF-8 nor NUL.
func clean(s string) string {
	if !strings.Contains(s, "\x00") {
		return strings.ToValidUTF8(s, "\uFFFD")
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func moment(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// hub wakes whoever watches a run. A wake-up carries nothing and wake-ups
// coalesce: the watcher reads what is new by its cursor.
type hub struct {
	mu       sync.Mutex
	watchers map[string]map[chan struct{}]struct{}
}

// Watch returns a channel that gets a value after something was recorded about
// the run (runID "" for any run; [EventsChanged] for events that came), and a
// function that ends the watch. Wake-ups coalesce. What other processes record
// wakes with PostgreSQL, while its connection holds; a watcher that shares its
// database also looks now and then by itself.
func (s *Store) Watch(runID string) (<-chan struct{}, func()) {
	s.listener.start()
	ch := make(chan struct{}, 1)
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	if s.hub.watchers == nil {
		s.hub.watchers = map[string]map[chan struct{}]struct{}{}
	}
	if s.hub.watchers[runID] == nil {
		s.hub.watchers[runID] = map[chan struct{}]struct{}{}
	}
	s.hub.watchers[runID][ch] = struct{}{}
	return ch, func() {
		s.hub.mu.Lock()
		defer s.hub.mu.Unlock()
		delete(s.hub.watchers[runID], ch)
		if len(s.hub.watchers[runID]) == 0 {
			delete(s.hub.watchers, runID)
		}
	}
}

func (h *hub) wake(runID string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, id := range [2]string{runID, ""} {
		for ch := range h.watchers[id] {
			select {
			case ch <- struct{}{}:
			default:
			}
		}
	}
}
