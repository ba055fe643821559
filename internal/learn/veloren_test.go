package learn

import (
	"encoding/csv"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
)

// TestFlakyNearestNeighbour: real failed job logs, in the order of time; each is
// judged from the labels of those before it.
func TestFlakyNearestNeighbour(t *testing.T) {
	dir := filepath.Join(dataDir(t), "flaky", "veloren-dev")
	f, err := os.Open(filepath.Join(dir, "labels.csv"))
	if err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(f).ReadAll()
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	rows = rows[1:]
	sort.SliceStable(rows, func(i, j int) bool { return rows[i][3] < rows[j][3] })
	fl := NewFlakes(0)
	x := NewExtractor()
	var tp, fp, fn, seenTP, seenFP, seenFN float64
	classes := map[Class][2]int{}
	nothing := 0
	for i, r := range rows {
		b, err := os.ReadFile(filepath.Join(dir, "logs", r[0]+".log"))
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(string(b), "\n")
		sig := x.Extract(lines, nil, "")
		words := FlakeTokens(lines)
		flaky := r[4] == "1"
		p := fl.Predict(sig.Class, words)
		guess := p >= .5
		if testing.Verbose() && guess != flaky {
			t.Logf("%s %s flaky=%v cat=%s p=%.2f %s %q", r[0], r[1], flaky, r[5], p, sig.Class, sig.Line)
		}
		switch {
		case guess && flaky:
			tp++
		case guess:
			fp++
		case flaky:
			fn++
		}
		if i >= 12 {
			switch {
			case guess && flaky:
				seenTP++
			case guess:
				seenFP++
			case flaky:
				seenFN++
			}
		}
		c := classes[sig.Class]
		if flaky {
			c[1]++
		} else {
			c[0]++
		}
		classes[sig.Class] = c
		if testing.Verbose() && sig.Class == ClassOther {
			t.Logf("other: %s %v %q", r[1], flaky, sig.Text)
		}
		if sig.Score <= 0 {
			nothing++
		}
		fl.Add("o/r", r[0], words)
		fl.Label("o/r", r[0], flaky)
	}
	f1 := 2 * tp / (2*tp + fp + fn)
	t.Logf("prequential F1 %.3f over all, %.3f after the first 12; no signature in %d of %d; classes (real, flaky): %v", f1, 2*seenTP/(2*seenTP+seenFP+seenFN), nothing, len(rows), classes)
	if f1 < .82 {
		t.Errorf("F1 %.3f is below what was published", f1)
	}
}
