// Package hearth is Hearth as a library: commands in fresh microVMs from Go, with
// what came of them remembered.
//
//	Host ── machines ──▶ Sessions ── one VM each ──▶ Executor ──▶ Result
//	  └──── memory of past runs: expectations before, explanations after ────┘
//
// A Host is this machine's driver, image, pool of VMs and record. Sessions hands
// out sessions, each with a VM of its own, and releases what is forgotten. An
// Executor runs a Workflow in a session: setup, steps, and a cleanup that always
// runs. It is planned as one job, which internal/engine runs as it runs those of
// workflow files; snapshots are hooks around steps. docs/library.md is the manual;
// its example is the package's.
//
// # Failures
//
// A command that fails is data: a StepResult with its exit code, and a Result whose
// Conclusion is Failure. An error means that we could not run it, or do not know
// how it ended; the Result then has no Conclusion, and never Success.
//
// # Machines of another kind
//
// Sessions needs only a Provider, an interface of one method: a Host is one, and a
// Client, whose machines are a server's. Both are a Memory, too: what was learned of
// runs and commands, to be asked.
//
// # Where workflows come from
//
// A program writes a Workflow and its Context down, or has them made of what it gets:
// ParseWorkflow of a file in GitHub's syntax, FromWords of plain words, FromEvent of a
// webhook's delivery. What cannot be had is an error, never left out.
package hearth
