package board

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/hearth-ci/hearth/internal/ci"
)

// Traffic is what a step did with one host and port: what was asked for and let
// through, and what was refused, are two.
type Traffic struct {
	Step     int    `json:"step"` // 0 is between steps
	StepName string `json:"step_name,omitempty"`
	Host     string `json:"host"` // the name that was asked for, else the address
	Port     int    `json:"port,omitempty"`
	Proto    string `json:"proto"` // tcp, udp, dns
	Refused  bool   `json:"refused,omitempty"`
	Reason   string `json:"reason,omitempty"` // of the first refusal
	Count    int    `json:"count"`
	BytesOut int64  `json:"bytes_out"`
	BytesIn  int64  `json:"bytes_in"`
	// New: in no run that this one was compared with this step reached the host, or was
	// refused it.
	New bool `json:"new,omitempty"`
}

// MaxTraffic bounds the kinds of traffic that a board keeps of a job; a job makes as
// many as it likes.
const MaxTraffic = 500

type trafficKey struct {
	step    int
	host    string
	port    int
	proto   string
	refused bool
}

// connected adds a connection to the traffic of its job.
func (j *Job) connected(r ci.Record) {
	c := r.Connection
	if c == nil {
		return
	}
	k := trafficKey{r.Step, cmp.Or(c.Host, c.IP), c.Port, c.Proto, c.Refused}
	t := j.byTarget[k]
	if t == nil {
		if len(j.Traffic) >= MaxTraffic {
			j.MoreTraffic++
			return
		}
		t = &Traffic{Step: k.step, Host: k.host, Port: k.port, Proto: k.proto, Refused: k.refused, Reason: r.Reason}
		if j.byTarget == nil {
			j.byTarget = map[trafficKey]*Traffic{}
		}
		j.byTarget[k] = t
		j.Traffic = append(j.Traffic, t)
	}
	t.Count++
	t.BytesOut += max(c.BytesOut, 0)
	t.BytesIn += max(c.BytesIn, 0)
}

// Connections are a job's traffic by step, in the order in which it came up, its
// steps named.
func (j *Job) Connections() []Traffic {
	names := map[int]string{}
	for _, s := range j.Steps {
		names[s.Number] = s.Name
	}
	out := make([]Traffic, 0, len(j.Traffic))
	for _, t := range j.Traffic {
		x := *t
		x.StepName = names[t.Step]
		out = append(out, x)
	}
	slices.SortStableFunc(out, func(a, b Traffic) int { return a.Step - b.Step })
	return out
}

// Reached is which hosts the steps of jobs have been seen to reach, or to be refused:
// what the traffic of another run is compared with. Steps are known by their names, since numbers move.
type Reached map[string]bool

func reachedKey(job string, t Traffic) string {
	return fmt.Sprintf("%s\x00%s\x00%s\x00%d\x00%s\x00%t", job, t.StepName, t.Host, t.Port, t.Proto, t.Refused)
}

// MaxReached bounds how many hosts of how many steps are compared with.
const MaxReached = 20_000

// Add takes in what the jobs of a run reached and were refused.
func (h Reached) Add(b *Board) {
	for _, j := range b.Jobs {
		for _, t := range j.Connections() {
			if len(h) < MaxReached {
				h[reachedKey(j.Key, t)] = true
			}
		}
	}
}

// Compare marks what is new in the traffic of a job.
func (h Reached) Compare(job string, ts []Traffic) {
	for i := range ts {
		ts[i].New = !h[reachedKey(job, ts[i])]
	}
}

// Target is where the traffic went, in words.
func (t Traffic) Target() string {
	s := Clean(t.Host)
	if t.Port != 0 {
		s += fmt.Sprintf(":%d", t.Port)
	}
	return s
}
