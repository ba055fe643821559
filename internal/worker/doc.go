// Package worker is where a planned run meets machines. It is the only place
// that knows both the language's side (plan, engine) and the machines' (pool).
//
// A [Conductor] drives one run: a single goroutine owns its [plan.State], asks
// it what may start, and hands each job to an [Executor]. The executor of
// `hearth run` is a [Runner] itself: claim a machine, run the engine against its
// agent, give the machine back. The executor of `hearth serve` puts the job into
// the queue and waits for it; a [Worker] elsewhere, in the same process or on
// another host, claims it and uses a Runner.
//
// Three things can go wrong with a job, and they stay apart: it failed (a
// conclusion), it was cancelled (a conclusion with its reason), or it could not
// be run (an [Outcome] with Infrastructure set: red, and not the user's doing).
// Whatever happens every job that was started is concluded exactly once, and
// Drive returns only when no goroutine of it is left.
package worker
