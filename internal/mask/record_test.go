package mask

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
)

// Names of steps and their outputs, host names, matrices, titles, what was learned:
// each was a text that somebody had forgotten to mask. A field that is added to a
// record is masked, or is named here as one that no job can fill.
func TestAttackEveryFieldOfARecord(t *testing.T) {
	const secret = "hunter2-hunter3"
	set := newSet(t, secret)
	ours := map[string]string{
		"Run": "an id", "Event": "GitHub's", "SHA": "hex", "Ref": "names the run",
		"Job": "names the job", "JobKey": "names the job", "StepID": "names the step", "Needs": "names jobs",
		"Type": "ours", "Conclusion": "ours", "Outcome": "ours", "Stream": "ours", "Level": "ours",
		"Explanation.Signature": "an id", "Connection.Proto": "ours",
		"Machine.ID": "ours", "Machine.Action": "ours", "Machine.Driver": "ours", "Machine.Image": "ours", "Machine.Host": "ours",
	}
	var fill func(v reflect.Value, name string, text string)
	fill = func(v reflect.Value, name, text string) {
		switch v.Kind() {
		case reflect.String:
			v.SetString(text)
		case reflect.Pointer:
			v.Set(reflect.New(v.Type().Elem()))
			fill(v.Elem(), name, text)
		case reflect.Struct:
			for i := range v.NumField() {
				if f := v.Field(i); f.CanSet() {
					fill(f, v.Type().Field(i).Name, text)
				}
			}
		case reflect.Slice:
			v.Set(reflect.MakeSlice(v.Type(), 2, 2))
			fill(v.Index(1), name, text)
		case reflect.Map:
			v.Set(reflect.MakeMap(v.Type()))
			v.SetMapIndex(reflect.ValueOf("key "+text), reflect.ValueOf("value "+text))
		case reflect.Interface:
			v.Set(reflect.ValueOf(map[string]any{"cell": []any{text}}))
		}
	}
	var check func(v reflect.Value, name string)
	check = func(v reflect.Value, name string) {
		switch v.Kind() {
		case reflect.Pointer:
			check(v.Elem(), name)
		case reflect.Struct:
			for i := range v.NumField() {
				if v.Type().Field(i).IsExported() && v.Type() != reflect.TypeFor[struct{}]() {
					check(v.Field(i), strings.TrimPrefix(name+"."+v.Type().Field(i).Name, "."))
				}
			}
		default:
			_, listed := ours[name]
			if s := fmt.Sprint(v.Interface()); (strings.Contains(s, "hunter2") || strings.Contains(s, "\x1b")) != listed {
				t.Errorf("%s: %q", name, s)
			}
		}
	}
	for _, text := range []string{secret, "hunt\x1b[31mer2-hun\u200bter3", strings.ToUpper(secret) + "\x1b[m hunter2-\x00hunter3"} {
		rec := ci.Record{}
		fill(reflect.ValueOf(&rec).Elem(), "", text)
		before, _ := json.Marshal(rec)
		got := set.Record(rec)
		check(reflect.ValueOf(got), "")
		if after, _ := json.Marshal(rec); string(after) != string(before) {
			t.Error("the record that was given has changed")
		}
	}
	// The outputs of a job are what other jobs are handed.
	value := strings.Repeat("x", 1<<20)
	rec := ci.Record{Type: ci.JobFinished, Outputs: map[string]string{"o": value}}
	if got := set.Record(rec); got.Outputs["o"] != value {
		t.Error("an output was changed")
	}
	rec.Type = ci.StepFinished
	for i := range 100 {
		rec.Outputs[fmt.Sprint(i)] = value
	}
	sum := 0
	for _, v := range set.Record(rec).Outputs {
		sum += len(v)
	}
	if sum > 1<<20 || len(rec.Outputs["o"]) != 1<<20 {
		t.Errorf("%d bytes are shown", sum)
	}
}
