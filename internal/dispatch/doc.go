// Package dispatch turns stored events into runs, drives them, and tells GitHub
// what became of them. It is what `hearth serve` is made of; the webhook that
// stores events, and the pages, stand beside it.
//
//	store(event) ─▶ take ─▶ read (GitHub: files, paths, messages at exact shas) ─▶ decide, plan ─▶ store(run, jobs)
//	                                                                                                 │
//	        check runs ◀── reporter ◀── records ◀── conductor ─▶ desk ─▶ queue ─▶ claim ─▶ machine ◀─┘
//
// # What is stored decides
//
// Everything can be killed at any moment. An event is taken with a hold and is
// handed out again when the hold runs out; the runs it has made already are found
// by its id and not made twice. A run that has not completed is taken up again
// from its stored plan and the jobs that have ended; a job that was running is
// given out again by the queue when its lease ends, as a new attempt, or is lost
// when its attempts are used up. A check run that has not been ended on GitHub is
// noted in the facts of the store (space "check") from before it is made until
// GitHub has acknowledged its end, so that it ends, and is looked for by its
// external id (the job's) before it would be made a second time.
//
// # One server of several
//
// Servers on one database hold repositories (lanes.go): whatever is done for a
// repository, of an event, a run or its checks, is done under a lease in the store,
// and all of it is one server's. So the order of pushes, concurrency groups and bounds
// are in memory. A lease that cannot be renewed is lost, by this process's clock
// before anybody else can have it: conductors end without a word, and jobs are put
// back. What is written later all the same (a process can be suspended anywhere) is
// refused by the store, since each write asks for the fence. What a dead server left is
// found by looking, every few seconds.
//
// # Which commit
//
// Workflow files are read at the sha of the run: of a push what was pushed; of a
// pull request the merge commit, if the payload names one and it merges the head
// that the payload names, or else the head itself (the event's detail says
// which; GitHub makes merge commits in its own time, and payloads carry stale
// ones). pull_request_target, and events that concern no commit, run what the
// default branch says. Check runs of pull requests are made at the head,
// where GitHub shows them.
//
// # What is said
//
// Nothing ends in silence. A workflow that does not parse, or cannot be planned,
// becomes a completed run without jobs and a failed check with its errors as
// annotations. An event for which no workflow runs ends with why in its detail,
// and makes no check. What GitHub did not answer is tried again later, as late as
// GitHub asks for; what it refused for good fails the event, with the reason.
//
// # Trust
//
// One server has many repositories, of people who need not trust each other (trust.go).
//
//   - A repository that Config.Policy does not name starts nothing, by whatever way
//     it comes: its deliveries, a run of an earlier process, a re-run, an approval.
//   - Everything is keyed by repository: secrets, variables, concurrency groups,
//     slots, tokens (those that this server reads with, too). The id in a check is
//     public: it counts only in a delivery of its own repository and installation.
//   - A delivery is what its body says, not its headers, which nobody has signed
//     (webhook.Shape); a body that came before under another delivery id counts only
//     if GitHub says that it sent it so.
//   - Who is behind the code decides what it gets: a pull request from a fork no
//     secrets, no variables, a token that reads, limits of its own, concurrency groups
//     of its own, and perhaps a wait for somebody's approval of that commit;
//     Dependabot secrets of its own and a token that reads. That stays with the plan,
//     over restarts and re-runs, whoever asks for them.
//   - Workflows of other repositories are read as anybody may, but for those of the
//     same owner, if they are served and share them.
//
// Everything in a payload is taken as text from outside: refs, names and messages
// are never paths or commands here.
//
// # Goroutines
//
// [Dispatcher.Serve] runs the loop that takes events (a goroutine an event, one
// event of a repository at a time), the desk's workers, the learner, one
// goroutine a run for its conductor, and one a run for its check runs. It returns
// when all have ended.
package dispatch
