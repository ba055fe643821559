// Package worker is where a planned job meets a machine: a [Runner] claims one,
// runs the engine against its agent, and gives it back. It is the only place that
// knows both the language's side (plan, engine) and the machines' (pool), and the
// [conduct.Executor] of `hearth run`.
//
// Beside it stands what a plan and the learner have to say to each other: what is
// known of a run before it starts ([Known], [Predictions], [Risk]).
package worker
