package ci

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"
)

// Whatever field a record has, also one of those to come, its JSON is that of
// encoding/json.
func TestAppendJSON(t *testing.T) {
	line := Record{V: 1, Seq: 7, Time: time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC), Type: LogLine, Run: "r", Job: "j", JobKey: "j (1)", Step: 2, StepID: "s",
		Stream: "stdout", Text: "all's well"}
	check := func(what string, r Record) {
		t.Helper()
		want, err := json.Marshal(r)
		got, gerr := r.AppendJSON([]byte("x"))
		if err != nil || gerr != nil || string(got) != "x"+string(want) {
			t.Errorf("%s:\n%s %v\n%s %v", what, got, gerr, want, err)
		}
	}
	check("a line", line)
	check("nothing", Record{})
	for _, text := range []string{"<b>&\"\\", "\x1b[31m\t", "é\u2028\xff", "", "~ }"} {
		r := line
		r.Text, r.Name, r.JobKey = text, text, text
		check(text, r)
	}
	for _, when := range []time.Time{{}, time.Now(), time.Now().In(time.FixedZone("x", 3600)), time.Unix(0, 0).UTC()} {
		r := line
		r.Time = when
		check(when.String(), r)
	}
	kind := reflect.TypeFor[Record]()
	for i := range kind.NumField() {
		r := line
		f := reflect.ValueOf(&r).Elem().Field(i)
		switch f.Kind() {
		case reflect.String:
			f.SetString("set")
		case reflect.Int, reflect.Int64:
			f.SetInt(3)
		case reflect.Bool:
			f.SetBool(true)
		case reflect.Pointer:
			f.Set(reflect.New(f.Type().Elem()))
		case reflect.Slice:
			f.Set(reflect.MakeSlice(f.Type(), 1, 1))
		case reflect.Map:
			f.Set(reflect.ValueOf(map[string]string{"k": "v"}))
		case reflect.Interface:
			f.Set(reflect.ValueOf(map[string]any{"os": "linux", "n": 1.5}))
		case reflect.Struct:
		default:
			t.Fatalf("%s: a %s", kind.Field(i).Name, f.Kind())
		}
		check(kind.Field(i).Name, r)
	}
}

func BenchmarkAppendJSON(b *testing.B) {
	r := Record{V: 1, Seq: 7, Time: time.Now().UTC(), Type: LogLine, Run: NewID(), Job: "build", JobKey: "build", Step: 2, Stream: "stdout",
		Text: "[ 42%] Building CXX object src/CMakeFiles/core.dir/parser/expression.cc.o"}
	var buf []byte
	for b.Loop() {
		buf, _ = r.AppendJSON(buf[:0])
	}
}
