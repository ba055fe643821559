package action

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestTrim: mirrors go when nobody has asked for them for long, or when all
// together are too large; never one that is in use or locked.
func TestTrim(t *testing.T) {
	dir := t.TempDir()
	mirror := func(name string, age time.Duration, size int) {
		t.Helper()
		d := filepath.Join(dir, "owner", name)
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(d, "HEAD"), []byte(strings.Repeat("x", size)), 0o600); err != nil {
			t.Fatal(err)
		}
		used := time.Now().Add(-age)
		if err := os.Chtimes(d, used, used); err != nil {
			t.Fatal(err)
		}
	}
	trim := func(l Limits, want ...string) {
		t.Helper()
		removed, err := Trim(t.Context(), dir, l)
		var got []string
		for _, r := range removed {
			got = append(got, r.Name)
		}
		if err != nil || strings.Join(got, " ") != strings.Join(want, " ") {
			t.Fatalf("removed %+v, %v; want %v", removed, err, want)
		}
	}
	mirror("ancient.git", 100*24*time.Hour, 10)
	mirror("locked.git", 100*24*time.Hour, 10)
	mirror("old.git", 3*time.Hour, 1000)
	mirror("older.git", 4*time.Hour, 1000)
	mirror("used.git", time.Minute, 1<<20)
	mirror("half.git.gone-77", time.Hour, 5)
	lock, err := os.Create(filepath.Join(dir, "owner", "locked.git.lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	trim(Limits{Unused: 24 * time.Hour, DryRun: true}, "owner/half", "owner/ancient", "owner/locked")
	trim(Limits{Unused: 24 * time.Hour}, "owner/half", "owner/ancient")
	trim(Limits{Unused: 24 * time.Hour})
	lock.Close()
	trim(Limits{Bytes: 1<<20 + 1500}, "owner/locked", "owner/older")
	trim(Limits{Bytes: 1}, "owner/old")
	if _, err := os.Stat(filepath.Join(dir, "owner", "used.git", "HEAD")); err != nil {
		t.Error("a mirror in use was removed:", err)
	}
}
