// Package plan turns a workflow and something that happened into a planned run,
// and says at every moment of that run which jobs may start. It is pure: no I/O,
// no clock, no network, no goroutine. Called workflows are handed in.
//
// # What a run is made of
//
// [Build] makes a [Run]. A Run holds three lists, so that nothing is written
// twice however many cells a matrix has:
//
//   - Files: the workflow files as read, each once. Steps live here.
//   - Calls: the instances of those files. Calls[0] is the workflow itself; each
//     job that calls a reusable workflow opens one more, with its inputs and the
//     most its jobs' tokens may do.
//   - Jobs: what runs, one for each cell of a matrix. A Job names its file and
//     its id there and carries only what is its own: name, matrix, labels,
//     permissions, environment, concurrency group. [Job.Definition] and
//     [Job.Workflow] point to the shared templates (env, steps, outputs,
//     container, services, defaults), which the engine evaluates.
//
// A Run goes to JSON and back exactly; Version tells the schema. It never holds
// a secret: github.token is dropped, and secrets of called workflows stay
// templates until [Run.Secrets] is given the values.
//
// # What is known when
//
// GitHub evaluates a job's keys only when the job becomes ready. Here whatever
// does not depend on other jobs is evaluated by Build, so that a list or a dry
// run shows it, and the rest later: a matrix that needs outputs makes a
// placeholder (Job.Deferred) which becomes its cells by an [Expand] action; any
// other key (Job.Late) is filled in before the job's [Start] action is returned.
// A key that GitHub would only fail on when the job runs fails here then too.
//
// # Driving a run
//
// One goroutine owns a [State]:
//
//	s := plan.NewState(run)
//	for !s.Done() {
//		for _, a := range s.Next() {
//			// Start: run it, or for a caller just call Started.
//			// Skip, Conclude: it has ended; record that.
//			// Cancel: stop it; its Finished is still to come.
//			// Expand: a placeholder became jobs.
//		}
//		// wait for something; then s.Started(key) or s.Finished(key, …)
//	}
//	conclusion := s.Conclusion()
//
// Next is deterministic: the same calls give the same actions, so a restarted
// server replays what it recorded.
//
// The rules are GitHub's. A job's `if` is evaluated once for the job, before its
// matrix. success() is about all ancestors, not only the direct needs, and about
// those in the same file: a skipped job three levels up skips this one. A failed
// job with continue-on-error counts as successful to others. Fail-fast cancels
// the other cells of the same matrix. The result of a matrix is the worst of its
// cells; of its outputs the last one not empty stays.
//
// What cannot run here (Job.Refused) is no rule of GitHub's. Such a job ends as
// NotRun where it would have started: for the jobs that need it, it was skipped. So
// is a matrix of which one cell is. A run that would have succeeded is neutral then.
package plan
