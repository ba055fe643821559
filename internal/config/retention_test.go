package config

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestRetention(t *testing.T) {
	file := filepath.Join(t.TempDir(), "hearth.json")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"retention": {"age": "14d", "repository_bytes": "2GiB", "event_bytes": 1048576, "images": "36h", "runs": 7}}`)
	c, err := Load(file, env("HEARTH_RETENTION_RUNS", "9", "HEARTH_RETENTION_RUN_LOG", "100 MB"))
	if err != nil {
		t.Fatal(err)
	}
	want := DefaultRetention()
	want.Age, want.RepositoryBytes, want.EventBytes, want.Images, want.Runs, want.RunLog = Duration(14*24*time.Hour), 2<<30, 1<<20, Duration(36*time.Hour), 9,
		100e6
	if c.Retention != want {
		t.Errorf("%+v\nwant %+v", c.Retention, want)
	}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	b, err := json.Marshal(c.Retention)
	var back Retention
	if err != nil || json.Unmarshal(b, &back) != nil || back != c.Retention || !strings.Contains(string(b), `"age":"14d"`) {
		t.Errorf("%s, %v", b, err)
	}
	for text, problem := range map[string]string{
		`{"retention": {"bytes": "many"}}`:       "size",
		`{"retention": {"bytes": "9999PiB"}}`:    "size",
		`{"retention": {"age": "two weeks"}}`:    "duration",
		`{"retention": {"aeg": "1d"}}`:           "aeg",
		`{"retention": {"age": "1s"}}`:           "retention.age",
		`{"retention": {"run_log": 0}}`:          "run_log",
		`{"retention": {"repository_bytes": 5}}`: "repository_bytes",
	} {
		write(text)
		c, err := Load(file, env())
		if err == nil {
			err = c.Validate()
		}
		if err == nil || !strings.Contains(err.Error(), problem) {
			t.Errorf("%s: %v", text, err)
		}
	}
	if _, errs := LoadRetention(env("HEARTH_RETENTION_AGE", "soon")); len(errs) != 1 || !strings.Contains(errs[0].Error(), "HEARTH_RETENTION_AGE") {
		t.Errorf("%v", errs)
	}
}
