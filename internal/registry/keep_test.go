package registry

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestTrim(t *testing.T) {
	dir := t.TempDir()
	if all, err := List(dir); err != nil || all != nil {
		t.Fatalf("%v %v", all, err)
	}
	put := func(host, name string, size int, used time.Duration) {
		at := filepath.Join(dir, "blobs", host, strings.Repeat(name, 64))
		if err := os.MkdirAll(filepath.Dir(at), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		when := time.Now().Add(-used)
		if err := os.Chtimes(at, when, when); err != nil {
			t.Fatal(err)
		}
	}
	fill := func() {
		os.RemoveAll(dir)
		put("ghcr.io", "a", 100, 40*24*time.Hour)
		put("docker.io", "b", 200, time.Hour)
		put("localhost_5001", "c", 300, time.Minute)
		put("docker.io", "d", 400, 0)
	}
	first := func(all []Kept) (s string) {
		for _, k := range all {
			s += k.Digest[len("sha256:"):][:1]
		}
		return s
	}
	for _, c := range []struct {
		limits        Limits
		removed, left string
	}{
		{Limits{}, "", "abcd"},
		{Limits{Unused: 30 * 24 * time.Hour}, "a", "bcd"},
		{Limits{Bytes: 1000}, "", "abcd"},
		{Limits{Bytes: 700}, "ab", "cd"},
		{Limits{Bytes: 1}, "abcd", ""},
		{Limits{Bytes: 900, Match: func(k Kept) bool { return k.Registry == "localhost_5001" }}, "ac", "bd"},
		{Limits{Bytes: 1, DryRun: true}, "abcd", "abcd"},
	} {
		fill()
		removed, err := Trim(dir, c.limits)
		left, listed := List(dir)
		if err != nil || listed != nil || first(removed) != c.removed || first(left) != c.left {
			t.Errorf("%+v: removed %s, left %s, %v %v", c.limits, first(removed), first(left), err, listed)
		}
		for _, k := range removed {
			if k.Why == "" || k.Bytes == 0 {
				t.Errorf("%+v", k)
			}
		}
	}
	fill()
	if _, err := Trim(dir, Limits{Match: func(k Kept) bool { return k.Registry == "ghcr.io" }}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "blobs", "ghcr.io")); err == nil {
		t.Error("a registry without anything keeps its directory")
	}
}
