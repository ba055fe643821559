// Package conduct drives a planned run from its first job to its conclusion.
//
// A [Conductor] is a single goroutine that owns the run's [plan.State]: it asks it
// what may start, holds concurrency groups ([Groups]), and hands each job to an
// [Executor]. It knows neither machines nor databases. The executor of `hearth
// run` is package worker's Runner itself; that of `hearth serve` is package desk,
// by way of the queue.
//
// Three things can go wrong with a job, and they stay apart: it failed (a
// conclusion), it was cancelled (a conclusion with its reason), or it could not
// be run (an [Outcome] with Infrastructure set: red, and not the user's doing).
// Whatever happens every job that was started is concluded exactly once, and
// Drive returns only when no goroutine of it is left.
package conduct
