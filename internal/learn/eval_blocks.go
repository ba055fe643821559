package learn

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// BlockScores measure which lines are shown of a failure against those that a
// person marked.
type BlockScores struct {
	Logs int `json:"logs"`
	// F1 is that of lines, over all logs: twice the lines that are both shown and
	// marked, by the lines shown and the lines marked. Low and High are its 90 %
	// interval, by resampling logs.
	F1   float64 `json:"f1"`
	Low  float64 `json:"low"`
	High float64 `json:"high"`
	// Exact is in how many logs the line that the signature is made of was marked,
	// Within in how many a marked line is shown, Silent in how many nothing is.
	Exact  int `json:"exact"`
	Within int `json:"within"`
	Silent int `json:"silent"`
}

// BlocksResult is what [EvalBlocks] found, beside the last ten lines before the
// step's own end, which anybody could show.
type BlocksResult struct {
	Hearth  BlockScores `json:"hearth"`
	LastTen BlockScores `json:"last_ten"`
}

// span are lines from 1, the last one included; the zero span is none.
type span struct{ from, to int }

func (s span) lines() int {
	if s.from == 0 {
		return 0
	}
	return s.to - s.from + 1
}

// maxEvalFile bounds what is read of one log.
const maxEvalFile = 64 << 20

// EvalBlocks looks at every NAME.log of a directory that has a NAME.gold beside it,
// "start end" of the marked lines, from 1, one or several lines of them. predictions,
// if not nil, gets the CSV file,start,end of what would be shown.
func EvalBlocks(ctx context.Context, dir string, predictions io.Writer) (BlocksResult, error) {
	logs, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil {
		return BlocksResult{}, err
	}
	x := NewExtractor()
	var ours, ten blockTally
	if predictions != nil {
		fmt.Fprintln(predictions, "file,start,end")
	}
	for _, name := range logs {
		if err := ctx.Err(); err != nil {
			return BlocksResult{}, context.Cause(ctx)
		}
		marked, err := readGold(strings.TrimSuffix(name, ".log") + ".gold")
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return BlocksResult{}, err
		}
		lines, err := readLog(name)
		if err != nil {
			return BlocksResult{}, err
		}
		sig := x.Extract(lines, nil, "")
		shown, head := span{}, 0
		if sig.To > sig.From {
			shown, head = span{sig.From + 1, sig.To}, sig.Head+1
			if predictions != nil {
				fmt.Fprintf(predictions, "%s,%d,%d\n", filepath.Base(name), shown.from, shown.to)
			}
		}
		ours.add(shown, head, marked)
		ten.add(lastTen(lines), 0, marked)
	}
	if len(ours.logs) == 0 {
		return BlocksResult{}, fmt.Errorf("read blocks: no NAME.log with a NAME.gold beside it in %s", dir)
	}
	return BlocksResult{ours.scores(), ten.scores()}, nil
}

func readLog(name string) ([]string, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxEvalFile+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxEvalFile {
		return nil, fmt.Errorf("read log: %s is larger than %d MiB", name, maxEvalFile>>20)
	}
	return strings.Split(string(bytes.TrimSuffix(b, []byte("\n"))), "\n"), nil
}

func readGold(name string) (out []span, err error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		var s span
		var err1, err2 error
		if len(f) == 2 {
			s.from, err1 = strconv.Atoi(f[0])
			s.to, err2 = strconv.Atoi(f[1])
		}
		if len(f) != 2 || err1 != nil || err2 != nil || s.from < 1 || s.to < s.from {
			return nil, fmt.Errorf("read blocks: %s: %q is not two line numbers, start and end, from 1", name, strings.TrimSpace(line))
		}
		out = append(out, s)
	}
	return out, nil
}

func lastTen(lines []string) span {
	to := len(lines)
	for i, l := range slices.Backward(lines) {
		l = Clean(clipBytes(l, 4*maxWidth))
		if l != "" && !noise.MatchString(l) && !ending.MatchString(l) {
			to = i + 1
			break
		}
	}
	return span{max(to-9, 1), to}
}

// blockTally has of each log: lines both shown and marked, shown, marked.
type blockTally struct {
	logs [][3]int
	BlockScores
}

func (t *blockTally) add(shown span, head int, marked []span) {
	var v [3]int
	v[1] = shown.lines()
	within, exact := false, false
	for _, m := range marked {
		v[2] += m.lines()
		if n := min(shown.to, m.to) - max(shown.from, m.from) + 1; shown.from > 0 && n > 0 {
			v[0] += n
			within = true
		}
		exact = exact || m.from <= head && head <= m.to
	}
	t.logs = append(t.logs, v)
	if within {
		t.Within++
	}
	if exact {
		t.Exact++
	}
	if shown.from == 0 {
		t.Silent++
	}
}

func (t *blockTally) scores() BlockScores {
	s := t.BlockScores
	s.Logs = len(t.logs)
	f1 := func(pick func(i int) int) float64 {
		var both, shown, marked int
		for i := range t.logs {
			v := t.logs[pick(i)]
			both, shown, marked = both+v[0], shown+v[1], marked+v[2]
		}
		if shown+marked == 0 {
			return 0
		}
		return 2 * float64(both) / float64(shown+marked)
	}
	s.F1 = f1(func(i int) int { return i })
	s.Low, s.High = bootstrap(func(r *rand.Rand) float64 { return f1(func(int) int { return r.IntN(len(t.logs)) }) })
	return s
}

// bootstrap is the 90 % interval of a figure that is computed anew on resampled
// data.
func bootstrap(figure func(*rand.Rand) float64) (low, high float64) {
	r := rand.New(rand.NewPCG(1, 2)) // the same interval for the same data
	v := make([]float64, 1000)
	for i := range v {
		v[i] = figure(r)
	}
	slices.Sort(v)
	return v[50], v[949]
}
