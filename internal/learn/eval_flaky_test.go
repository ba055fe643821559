package learn

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestFlakyNearestNeighbour: real failed job logs, in the order of time; each is
// judged from the labels of those before it.
func TestFlakyNearestNeighbour(t *testing.T) {
	r, err := EvalFlaky(t.Context(), filepath.Join(dataDir(t), "flaky", "veloren-dev"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", r)
	if r.N != 172 || r.Hearth.F1 < .93 || r.Hearth.F1 < r.Nearest.F1 || r.Hearth.LogLoss > r.Nearest.LogLoss {
		t.Errorf("%+v: the nearest neighbour alone has .93", r)
	}
}

func TestEvalFlaky(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "logs"), 0o700); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var labels strings.Builder
	labels.WriteString("created_at,id,intermittent\n")
	for i, v := range []struct {
		flaky, log string
	}{
		{"1", "the frobnicator is out of widgets, sector 7"}, {"0", "sprocket 12 does not turn"},
		{"1", "the frobnicator is out of widgets, sector 9"}, {"0", "sprocket 3 does not turn"},
		{"1", "the frobnicator is out of widgets, sector 1"}, {"0", "sprocket 9 does not turn"},
	} {
		id := string(rune('a' + i))
		labels.WriteString("2024-01-0" + string(rune('1'+i)) + "," + id + "," + v.flaky + "\n")
		write("logs/"+id+".log", v.log+"\n")
	}
	write("labels.csv", labels.String())
	var out strings.Builder
	r, err := EvalFlaky(t.Context(), dir, &out)
	if err != nil || r.N != 6 || r.Flaky != 3 {
		t.Fatalf("%+v, %v", r, err)
	}
	// Nothing tells the first of its kind; the others are like what was labelled.
	if math.Abs(r.Hearth.Recall-2./3) > 1e-9 || r.Hearth.Precision != 1 || r.Nearest.Precision < .6 {
		t.Errorf("%+v\n%s", r, out.String())
	}
	if l := strings.Split(out.String(), "\n"); len(l) != 8 || l[0] != "id,p_flaky" || !strings.HasPrefix(l[6], "f,") {
		t.Errorf("%q", l)
	}
	for bad, want := range map[string]string{
		"created_at,id,intermittent\n1,../../etc/passwd,1\n": "no name of a log",
		"created_at,id,intermittent\n1,a,maybe\n":            `"maybe"`,
		"created_at,id\n1,a\n":                               "no column intermittent",
		"created_at,id,intermittent\n":                       "no rows",
	} {
		write("labels.csv", bad)
		if _, err := EvalFlaky(t.Context(), dir, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
