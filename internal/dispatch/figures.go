package dispatch

import (
	"maps"
	"sync"
	"time"
)

// Figures are what this process has done so far, and what it has in its hands now.
type Figures struct {
	Leases, LeasesLost int // repositories: held now; lost to other servers so far
	Runs               int // driven now
	// Events by what became of them: the states of [store.EventState], "again" for those
	// that were put back and "left" for those that became another server's.
	Events map[string]int64
	// Machines is how many machines jobs got, and Start how long all of them took.
	Machines int64
	Start    time.Duration
	// Requeued and Lost are jobs whose workers were lost.
	Requeued, Lost int64
}

// counts are the sums in it.
type counts struct {
	mu       sync.Mutex
	events   map[string]int64
	machines int64
	start    time.Duration
}

func (c *counts) event(became string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.events == nil {
		c.events = map[string]int64{}
	}
	c.events[became]++
}

func (c *counts) machine(took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.machines++
	c.start += max(0, took)
}

// Figures reads them.
func (d *Dispatcher) Figures() Figures {
	var f Figures
	d.repos.mu.Lock()
	f.Leases, f.LeasesLost = len(d.repos.held), d.repos.gone
	d.repos.mu.Unlock()
	d.mu.Lock()
	f.Runs = len(d.runs)
	d.mu.Unlock()
	d.counts.mu.Lock()
	f.Events, f.Machines, f.Start = maps.Clone(d.counts.events), d.counts.machines, d.counts.start
	d.counts.mu.Unlock()
	f.Requeued, f.Lost = d.desk.Expired()
	return f
}
