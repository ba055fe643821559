package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
)

// checkRecords reads NDJSON as strictly as its schema is written, and says
// everything that is not as docs/records.md has it.
func checkRecords(b []byte) (out []ci.Record, problems []string) {
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	lines := bufio.NewScanner(bytes.NewReader(b))
	lines.Buffer(nil, 16<<20)
	seq := map[string]int64{}
	type thing struct{ run, job, step string }
	open := map[thing]bool{} // queued or started, and not finished
	ended := map[thing]int{}
	last := map[string]ci.RecordType{}
	for n := 1; lines.Scan(); n++ {
		at := fmt.Sprintf("line %d", n)
		var raw map[string]json.RawMessage
		if err := json.Unmarshal(lines.Bytes(), &raw); err != nil {
			bad("%s is no JSON object: %v: %.200s", at, err, lines.Text())
			continue
		}
		dec := json.NewDecoder(bytes.NewReader(lines.Bytes()))
		dec.DisallowUnknownFields()
		var r ci.Record
		if err := dec.Decode(&r); err != nil {
			bad("%s: %v: %.200s", at, err, lines.Text())
			continue
		}
		out = append(out, r)
		at += " (" + string(r.Type) + ")"
		for _, k := range []string{"v", "seq", "time", "type", "run"} {
			if raw[k] == nil {
				bad("%s has no %q", at, k)
			}
		}
		if r.V != ci.RecordVersion || r.Time.IsZero() {
			bad("%s: v %d, time %v", at, r.V, r.Time)
		}
		if !slices.Contains(recordTypes, r.Type) {
			bad("%s: unknown type", at)
		}
		if r.Run == "" && r.Type != ci.DiagnosticRec {
			bad("%s belongs to no run", at)
		}
		if seq[r.Run]++; r.Seq != seq[r.Run] {
			bad("%s: seq %d, want %d", at, r.Seq, seq[r.Run])
			seq[r.Run] = r.Seq
		}
		if last[r.Run] == ci.RunFinished {
			bad("%s comes after its run has finished", at)
		}
		last[r.Run] = r.Type
		kind, verb, _ := strings.Cut(string(r.Type), ".")
		if kind == "job" || kind == "step" || kind == "log" || kind == "group" || kind == "machine" {
			if r.Job == "" || r.JobKey == "" {
				bad("%s names no job", at)
			}
		}
		if (kind == "job" || kind == "step") && r.Name == "" {
			bad("%s has no name", at)
		}
		if kind == "step" && (r.Step < 1 || r.StepID == "") {
			bad("%s: step %d, step_id %q", at, r.Step, r.StepID)
		}
		me := thing{r.Run, "", ""}
		switch kind {
		case "job":
			me.job = r.JobKey
		case "step":
			me.job, me.step = r.JobKey, fmt.Sprint(r.Step)
		}
		switch verb {
		case "planned", "queued", "started":
			open[me] = true
		case "finished":
			if !r.Conclusion.Valid() || r.DurationMS == nil || *r.DurationMS < 0 {
				bad("%s: conclusion %q, duration %v", at, r.Conclusion, r.DurationMS)
			}
			if kind == "step" && (!r.Outcome.Valid() || r.ExitCode == nil) {
				bad("%s of %q: outcome %q, exit code %v", at, r.Name, r.Outcome, r.ExitCode)
			}
			delete(open, me)
			if r.Attempt < 2 {
				if ended[me]++; ended[me] > 1 {
					bad("%s of %+v is not the first", at, me)
				}
			}
		}
	}
	if err := lines.Err(); err != nil {
		bad("%v", err)
	}
	for o := range open {
		bad("%+v began and has no end", o)
	}
	return out, problems
}

// exposed says which of the secrets b holds, and how.
func exposed(b []byte, secrets []string) string {
	for _, s := range secrets {
		if bytes.Contains(b, []byte(s)) {
			return s
		}
		for skip := range 3 {
			// The part of the encoding that does not depend on what stands around.
			e := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", skip) + s))
			e = strings.TrimRight(e, "=")
			e = e[min(4, len(e)-1):]
			if skip == 0 {
				e = base64.StdEncoding.EncodeToString([]byte(s))
			}
			e = strings.TrimRight(e, "=")
			if e = e[:len(e)-1]; len(e) >= 6 && bytes.Contains(b, []byte(e)) {
				return s + " as base64 (" + e + ")"
			}
		}
	}
	return ""
}

func exposedBelow(dir string, secrets []string) error {
	return filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if found := exposed(b, secrets); found != "" {
			return fmt.Errorf("%s has %s", path, found)
		}
		return nil
	})
}

// recordTypes is every type there is.
var recordTypes = []ci.RecordType{ci.RunPlanned, ci.RunStarted, ci.RunFinished, ci.JobQueued, ci.JobStarted, ci.JobFinished, ci.StepStarted, ci.StepFinished,
	ci.LogLine, ci.Group, ci.AnnotationRec, ci.PredictionRec, ci.DiagnosticRec, ci.MachineRec, ci.ConnectionRec, ci.SummaryRec}

// TestRecordsDocumented holds docs/records.md against the types: every field
// and every record type has its row there, and nothing else has.
func TestRecordsDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/records.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{}
	for _, s := range strings.Split(string(b), "\n## ")[1:] {
		title, body, _ := strings.Cut(s, "\n")
		sections[title] = body
	}
	row := regexp.MustCompile("(?m)^\\| `([^`]+)` \\| ([^|]+) \\|")
	names := func(section string) map[string]string {
		out := map[string]string{}
		for _, m := range row.FindAllStringSubmatch(sections[section], -1) {
			if _, twice := out[m[1]]; twice {
				t.Errorf("%s: %s stands there twice", section, m[1])
			}
			out[m[1]] = strings.TrimSpace(m[2])
		}
		return out
	}
	types := names("Types")
	for _, r := range recordTypes {
		if _, ok := types[string(r)]; !ok {
			t.Errorf("docs/records.md does not say what %s is", r)
		}
		delete(types, string(r))
	}
	for name := range types {
		t.Errorf("docs/records.md tells of a type %s that does not exist", name)
	}
	for section, v := range map[string]any{"Fields": ci.Record{}, "prediction": ci.Prediction{}, "explanation": ci.Explanation{}, "machine": ci.MachineEvent{},
		"connection": ci.ConnectionEvent{}} {
		said := names(section)
		for f := range reflect.TypeOf(v).Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			want := jsonType(f.Type)
			if got, ok := said[name]; !ok || got != want {
				t.Errorf("docs/records.md, %s: %s is %q, want %q", section, name, got, want)
			}
			delete(said, name)
		}
		for name := range said {
			t.Errorf("docs/records.md, %s: there is no field %s", section, name)
		}
	}
	if !strings.Contains(string(b), fmt.Sprintf("version %d", ci.RecordVersion)) {
		t.Errorf("docs/records.md does not speak of version %d", ci.RecordVersion)
	}
}

func jsonType(t reflect.Type) string {
	if t.String() == "time.Time" {
		return "time"
	}
	switch t.Kind() {
	case reflect.Pointer:
		return jsonType(t.Elem())
	case reflect.String:
		return "string"
	case reflect.Bool:
		return "bool"
	case reflect.Int, reflect.Int64:
		return "integer"
	case reflect.Float64:
		return "number"
	case reflect.Slice:
		return "array of " + jsonType(t.Elem())
	case reflect.Interface:
		return "any"
	}
	return "object"
}

// TestCheckRecords: the checker itself finds what it is there for.
func TestCheckRecords(t *testing.T) {
	const head = `{"v":1,"seq":1,"time":"2026-01-01T00:00:00Z","type":"run.started","run":"r"}` + "\n"
	for _, c := range []struct{ in, want string }{
		{head, "has no end"},
		{head + "hello\n", "no JSON object"},
		{head + `{"v":1,"seq":3,"time":"2026-01-01T00:00:00Z","type":"run.finished","run":"r","conclusion":"success","duration_ms":1}`, "seq 3"},
		{head + `{"v":1,"seq":2,"time":"2026-01-01T00:00:00Z","type":"run.finished","run":"r","conclusion":"success"}`, "duration"},
		{head + `{"v":1,"seq":2,"time":"2026-01-01T00:00:00Z","type":"run.finished","run":"r","conclusion":"green","duration_ms":1}`, "conclusion"},
		{head + `{"v":1,"seq":2,"time":"2026-01-01T00:00:00Z","type":"run.finished","run":"r","conclusion":"success","duration_ms":1,"new":1}`, "unknown field"},
	} {
		if _, problems := checkRecords([]byte(c.in)); !strings.Contains(strings.Join(problems, "\n"), c.want) {
			t.Errorf("%s\n%q, want %q", c.in, problems, c.want)
		}
	}
	if _, problems := checkRecords([]byte(head + `{"v":1,"seq":2,"time":"2026-01-01T00:00:00Z","type":"run.finished","run":"r","conclusion":"success","duration_ms":1}`)); problems != nil {
		t.Error(problems)
	}
	if got := exposed([]byte("x" + base64.StdEncoding.EncodeToString([]byte("ab-hunter2hunter2-")))[:], []string{"hunter2hunter2"}); got == "" {
		t.Error("a secret within base64 is not found")
	}
}
