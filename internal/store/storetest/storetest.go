// Package storetest gives tests a store on each database: SQLite always, and
// PostgreSQL on a server started for the test, from the programs that Debian's
// postgresql package installs. Only tests import it.
package storetest

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/store"
)

// Each runs fn once for every database. open opens a store on one and the same
// fresh database each time it is called, so that two calls stand for two
// processes; stores are closed when the test ends.
func Each(t *testing.T, fn func(t *testing.T, open func() *store.Store)) {
	t.Helper()
	run := func(t *testing.T, dsn string) {
		logs := t.TempDir()
		fn(t, func() *store.Store {
			s, err := store.Open(t.Context(), dsn, store.WithLogs(logs))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			})
			return s
		})
	}
	t.Run("sqlite", func(t *testing.T) { run(t, filepath.Join(t.TempDir(), "hearth.db")) })
	t.Run("postgresql", func(t *testing.T) { run(t, PostgreSQL(t)) })
}

// PostgreSQL starts a server that ends with the test and returns the URL of an
// empty database on it. Where the server's programs are not installed it skips
// the test, loudly.
func PostgreSQL(t *testing.T) string {
	t.Helper()
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(bins) == 0 {
		t.Skip("SKIPPED, NOT PASSED: PostgreSQL was not tested: no /usr/lib/postgresql/*/bin/initdb; apt-get install postgresql")
	}
	slices.Sort(bins)
	bin := filepath.Dir(bins[len(bins)-1])
	// The server refuses to run as root. A directory of its own, since it must
	// be reachable for that user, and its socket's path short.
	dir, err := os.MkdirTemp("/tmp", "hearth-pg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	attr := &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Getuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			if u, err = user.Lookup("nobody"); err != nil {
				t.Skipf("SKIPPED, NOT PASSED: PostgreSQL was not tested: no unprivileged user to run it as: %v", err)
			}
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	data := filepath.Join(dir, "data")
	initdb := exec.Command(filepath.Join(bin, "initdb"), "-D", data, "-U", "hearth", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
	initdb.SysProcAttr, initdb.Dir = attr, dir
	if out, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	logFile, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer logFile.Close()
	server := exec.Command(filepath.Join(bin, "postgres"), "-D", data, "-k", dir, "-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=60")
	server.SysProcAttr, server.Dir, server.Stdout, server.Stderr = attr, dir, logFile, logFile
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		server.Process.Signal(syscall.SIGINT) // fast shutdown
		if err := server.Wait(); err != nil {
			t.Logf("postgres: %v", err)
		}
	})
	url := fmt.Sprintf("postgres:///%%s?host=%s&user=hearth&sslmode=disable", dir)
	db, err := sql.Open("pgx", fmt.Sprintf(url, "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if err = db.PingContext(context.Background()); err == nil {
			break
		}
		if time.Now().After(deadline) {
			out, _ := os.ReadFile(logFile.Name())
			t.Fatalf("postgres does not answer: %v\n%s", err, out)
		}
	}
	if _, err := db.Exec(`CREATE DATABASE hearth`); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf(url, "hearth")
}
