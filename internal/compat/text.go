package compat

import (
	"bufio"
	"fmt"
	"io"
)

// Score counts what was said.
type Score struct {
	Workflows, Whole, Part int // of which all jobs, or some, run here
	Jobs, Run              int
	Invalid                int // files that GitHub would not take
}

// Count adds what is said of one file.
func (s *Score) Count(jobs []Job) {
	if len(jobs) == 0 {
		return
	}
	s.Workflows++
	run, whole := 0, true
	for _, j := range jobs {
		if j.Invalid {
			s.Invalid++
		}
		if j.Job != "" {
			s.Jobs++
		}
		if j.Runs {
			run++
		}
		whole = whole && len(j.Reasons) == 0
	}
	s.Run += run
	switch {
	case whole:
		s.Whole++
	case run > 0:
		s.Part++
	}
}

func (s *Score) String() string {
	return fmt.Sprintf("%d of %d workflows run here, %d more in part; %d of %d jobs", s.Whole, s.Workflows, s.Part, s.Run, s.Jobs)
}

// Write says in lines what is said of one file; all says it of steps that run, too.
func Write(w io.Writer, jobs []Job, all bool) error {
	b := bufio.NewWriter(w)
	for i, j := range jobs {
		if i == 0 {
			fmt.Fprintf(b, "%s", j.File)
			if j.Workflow != "" {
				fmt.Fprintf(b, ": %s", j.Workflow)
			}
			if j.Event != "" {
				fmt.Fprintf(b, " (%s)", j.Event)
			}
			fmt.Fprintln(b)
		}
		name, word, sign := j.Job, "runs", "✓"
		switch {
		case j.Job == "":
			name, word, sign = "the file", "cannot be planned", "✗"
		case !j.Runs:
			word, sign = "cannot run here", "⊘"
		case len(j.Reasons) > 0:
			word, sign = fmt.Sprintf("%d of %d cells run", j.CellsRun, j.Cells), "◐"
		case len(j.Differs) > 0:
			word, sign = "runs, and differs", "~"
		}
		fmt.Fprintf(b, "  %s %s: %s\n", sign, name, word)
		for _, l := range []struct {
			head  string
			lines []string
		}{{"cannot", j.Reasons}, {"if reached", j.Perhaps}, {"differs", j.Differs}} {
			for _, line := range l.lines {
				fmt.Fprintf(b, "      %s: %s\n", l.head, line)
			}
		}
		for _, s := range j.Steps {
			if all {
				fmt.Fprintf(b, "      %2d %-8s %s\n", s.Number, s.Is, s.Name)
			}
		}
	}
	return b.Flush()
}
