package ci

import (
	"encoding/json"
	"testing"
	"time"
)

func TestConclude(t *testing.T) {
	for _, c := range []struct {
		jobs []Conclusion
		want Conclusion
	}{
		{nil, Skipped},
		{[]Conclusion{Skipped, Skipped}, Skipped},
		{[]Conclusion{Skipped, Success}, Success},
		{[]Conclusion{Neutral}, Success},
		{[]Conclusion{Success, Cancelled}, Cancelled},
		{[]Conclusion{Cancelled, Failure, Success}, Failure},
		{[]Conclusion{TimedOut}, Failure},
		{[]Conclusion{Success, NotRun, Skipped}, NotRun},
		{[]Conclusion{NotRun, Cancelled}, Cancelled},
		{[]Conclusion{Failure, NotRun}, Failure},
		{[]Conclusion{Success, ""}, Failure}, // a job that never concluded is no success
	} {
		if got := Conclude(c.jobs); got != c.want {
			t.Errorf("Conclude(%v) = %q, want %q", c.jobs, got, c.want)
		}
	}
}

func TestIDsKeepTheirOrder(t *testing.T) {
	before := NewID()
	for range 100_000 { // many in each millisecond
		id := NewID()
		if id <= before || !ValidID(id) {
			t.Fatalf("%s came after %s", id, before)
		}
		before = id
	}
}

func TestIDsSortByAge(t *testing.T) {
	a := NewIDAt(time.UnixMilli(1_700_000_000_000))
	b := NewIDAt(time.UnixMilli(1_700_000_000_001))
	if a >= b || !ValidID(a) || ValidID("../../etc/passwd") {
		t.Errorf("ids %q, %q", a, b)
	}
}

func TestRecordKeepsZeroes(t *testing.T) {
	b, err := json.Marshal(Record{V: RecordVersion, Type: StepFinished, ExitCode: new(0), DurationMS: new(int64(0))})
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	if m["exit_code"] != 0.0 || m["duration_ms"] != 0.0 {
		t.Errorf("a finished step must carry its exit code and duration: %s", b)
	}
}
