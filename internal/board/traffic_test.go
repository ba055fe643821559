package board

import (
	"fmt"
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
)

// Connections add up by step, host and port, what was refused by itself; what an
// earlier run reached in a step of that name is not new, wherever the step stands.
func TestTraffic(t *testing.T) {
	ran := func(number int, hosts ...string) *Board {
		b := &Board{}
		b.Apply(ci.Record{Type: ci.StepStarted, JobKey: "a", Step: number, Name: "get"})
		for _, h := range hosts {
			c := ci.ConnectionEvent{Host: h, Port: 443, Proto: "tcp", BytesOut: 10, BytesIn: 100}
			if h == "bad" {
				c.Refused, c.Host, c.IP = true, "", "10.0.0.1"
			}
			b.Apply(ci.Record{Type: ci.ConnectionRec, JobKey: "a", Step: number, Reason: "because", Connection: &c})
		}
		return b
	}
	first, second := ran(1, "x", "y", "x", "bad"), ran(2, "x", "z", "bad")
	got := first.Jobs[0].Connections()
	if len(got) != 3 || got[0].Target() != "x:443" || got[0].Count != 2 || got[0].BytesOut != 20 || got[0].BytesIn != 200 || got[0].StepName != "get" ||
		got[2].Target() != "10.0.0.1:443" || !got[2].Refused || got[2].Reason != "because" {
		t.Errorf("%+v", got)
	}
	usual := Reached{}
	usual.Add(first)
	got = second.Jobs[0].Connections()
	usual.Compare("a", got)
	if got[0].New || !got[1].New || got[2].New {
		t.Errorf("%+v", got)
	}
	got[2].Refused = false // had it been let through, that would be news
	if usual.Compare("a", got); !got[2].New {
		t.Errorf("%+v", got[2])
	}
	usual.Compare("b", got)
	if !got[0].New {
		t.Error("another job's hosts count")
	}
	b := &Board{}
	for i := range MaxTraffic + 7 {
		b.Apply(ci.Record{Type: ci.ConnectionRec, JobKey: "a", Connection: &ci.ConnectionEvent{Host: fmt.Sprint(i), Proto: "dns", BytesIn: -5}})
	}
	if j := b.Jobs[0]; len(j.Traffic) != MaxTraffic || j.MoreTraffic != 7 || j.Traffic[0].BytesIn != 0 {
		t.Errorf("%d kinds, and %d", len(j.Traffic), j.MoreTraffic)
	}
}
