package main

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/hearth-ci/hearth/internal/dispatch"
	"github.com/hearth-ci/hearth/internal/forge/github"
	"github.com/hearth-ci/hearth/internal/machine"
	"github.com/hearth-ci/hearth/internal/metrics"
	"github.com/hearth-ci/hearth/internal/store"
)

// waiting reads the queue for those who watch over a server.
func waiting(s *store.Store) func(context.Context) ([]metrics.Waiting, error) {
	return func(ctx context.Context) ([]metrics.Waiting, error) {
		all, err := s.QueueDepths(ctx)
		out := make([]metrics.Waiting, len(all))
		for i, d := range all {
			out[i] = metrics.Waiting(d)
		}
		return out, err
	}
}

// samples are a server's figures besides its queue; budget is nil without an App.
func samples(d dispatch.Figures, m machine.Stats, budget *github.Budget, webhooks *metrics.Counts) []metrics.Sample {
	var out []metrics.Sample
	add := func(kind, name, help string, v float64) {
		out = append(out, metrics.Sample{Name: name, Help: help, Kind: kind, Value: v})
	}
	of := func(name, help, label, value string, v float64) {
		out = append(out, metrics.Sample{Name: name, Help: help, Kind: "counter", Label: label, Of: value, Value: v})
	}
	add("gauge", "hearth_leases", "Repositories whose runs this server drives.", float64(d.Leases))
	add("counter", "hearth_leases_lost_total", "Repositories that it lost while it drove their runs.", float64(d.LeasesLost))
	add("gauge", "hearth_runs", "Runs that it drives.", float64(d.Runs))
	for _, state := range slices.Sorted(maps.Keys(d.Events)) {
		of("hearth_events_total", "Events by what became of them.", "state", state, float64(d.Events[state]))
	}
	of("hearth_jobs_expired_total", "Jobs whose workers were lost: they wait again, or are lost with them.", "end", "requeued", float64(d.Requeued))
	of("hearth_jobs_expired_total", "Jobs whose workers were lost: they wait again, or are lost with them.", "end", "lost", float64(d.Lost))
	add("counter", "hearth_machine_start_seconds_sum", "How long jobs' machines took to be ready.", d.Start.Seconds())
	add("counter", "hearth_machine_start_seconds_count", "Jobs' machines that were ready.", float64(d.Machines))
	add("gauge", "hearth_machines_leased", "Machines of this host in use.", float64(m.Leased))
	add("gauge", "hearth_machines_waiting", "Claims that wait for this host's means.", float64(m.Waiting))
	add("gauge", "hearth_machines_warm", "Machines of this host that are ready.", float64(m.Warm))
	add("counter", "hearth_machine_claims_total", "Claims of machines that were met.", float64(m.Claims))
	add("counter", "hearth_machine_warm_hits_total", "Of them, by a machine that was ready.", float64(m.WarmHits))
	add("counter", "hearth_machines_lost_total", "Claims that failed, and machines that died in use.", float64(m.Lost))
	out = append(out, webhooks.Samples("hearth_webhook_deliveries_total", "Deliveries by the answer to them.")...)
	if budget != nil {
		for _, code := range slices.Sorted(maps.Keys(budget.Answers)) {
			of("hearth_forge_answers_total", "GitHub's answers by status; 0 is none.", "code", strconv.Itoa(code), float64(budget.Answers[code]))
		}
		if budget.Limit > 0 {
			add("gauge", "hearth_forge_budget", "Requests that GitHub allows the installation with the fewest left.", float64(budget.Limit))
			add("gauge", "hearth_forge_budget_remaining", "Requests that are left of it.", float64(budget.Remaining))
			add("gauge", "hearth_forge_budget_reset_seconds", "Until it is renewed.", max(0, time.Until(budget.Reset).Seconds()))
		}
	}
	return out
}
