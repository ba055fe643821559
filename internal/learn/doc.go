// Package learn is what Hearth remembers of what it ran, and what it does with
// it: how likely each step is to fail and how long it will take, before it
// starts; whether a failure was seen before and what ended it then; whether it
// looks flaky; whether to try again.
//
// # In the run path
//
// [Learner] follows the store's event log with a cursor that is kept in the
// database, in the transaction that keeps what was learned: each finished step
// teaches exactly once, whichever process sees it first, and all processes share
// what is known ([Learner.Consume]). Memory is a cache of the database; a
// transaction that fails throws it away. Before a run [Learner.Before] predicts
// and stores the predictions; their outcomes are written beside them, so that
// [Learner.Report] can say how good they were. After a failure [Learner.Explain]
// gives its signature and history, [Learner.Retry] decides. A Learner that is
// off, or nil, does and says nothing, and nothing else changes: callers need not
// ask.
//
// What is stored of a text was masked of secrets before it came here.
//
// # The model (model.go, counter.go, stack.go)
//
// For every key there are decayed counters of events and failures at half-lives
// of 2, 8, 30, 150 and infinitely many events, each in O(1) of time and space.
// Keys form a hierarchy, everything > repository > workflow > job > step > step
// on this branch, in which every estimate is shrunk towards that of its parent,
// made of the parent's other children alone: a counter keeps what it gave to its
// parent, faded as that fades. (Where a parent's estimate has the child's own
// events in it, they count once more at each level, and a few passes look like
// proof.) The mean of the log-odds of the deepest estimates is the middle. Beside
// it stand contexts, a few cases of what has just happened (how long a streak, of
// what, was there ever a failure; is the branch new, how did it end there), each
// with counters of its own for everything, the repository, the job and the step.
//
// A linear model over the middle, what the estimates and contexts say beyond it,
// the last outcomes, the time since the last failure, what other jobs of the
// commit, branch, author and repository came to against what was expected of them,
// what the commit changed, how its parent ended, and a model over the words of
// names (FTRL) learns to correct it, and starts near where it changes nothing. It
// learns online by Laplace's approximation, so that each weight moves as far as it
// is unsure. It is there twice, bold and timid; their log-odds, the middle and the
// start are mixed by weights that follow their losses.
//
// Outcomes are used only once they are known: predict at the start, learn at the
// end. Outcomes that arrive together teach together ([Model.Settle]), and what
// overlaps in time with the outcome before it hardly counts above its job. First
// attempts teach the counters; later attempts have weights of their own.
// Cancelled, skipped and what could not be run are no outcomes.
//
// [Eval] replays a file of executions under these rules and measures.
//
// # Durations (duration.go)
//
// Of every step, job and step on a branch the last thirty durations are kept. What is
// expected is a mixture, in logarithms, of a few medians and means of them, by
// weights that follow what each lost when it was asked, before the start; so is how
// far the 90 % and 99.5 % bounds lie above it, which widen and narrow until they hold
// as often as they say. [EvalDurations] measures it.
//
// # Shifts (shift.go)
//
// A step or job that from some run on takes longer, or fails more often, is noticed by
// cumulative sums of both, of durations robustly scaled, and restarted after an alarm.
// It is listed ([Learner.Shifts]), and for two weeks a reason in what is expected.
//
// # Retries (retry.go, decide.go, offpolicy.go)
//
// Whether the next attempt at a failure passes is asked of the whole first, then of its
// parts: a table of how often attempts of that number pass, what the class of the
// failure is known for, by how much more has passed than expected of that class, in
// the repository, the workflow, on the branch, of the step, and last the signature's own
// attempts. Another attempt is made where that times the wait of a person is more than
// the attempt takes; where both are close it is left to chance, so that there is
// something to learn from. Every decision is kept with its probability, costs and
// propensity ([Learner.RetryReport]). What was tried again by itself has failed, for
// everything that learns. [EvalRetry] and [Replay] measure it on files.
//
// # Signatures (signature.go, blocks.go)
//
// Output is cleaned, lines that green runs of the step print too are dropped,
// rules and words nominate candidates by one pass of an automaton. The first of the
// strongest is it, and the block it begins (of a traceback: up to its last
// exception, which is then the line) is what is shown; where no rule knows a line,
// the last words before the step's end are. The line is masked of everything that
// changes from run to run, and a tree of templates (Drain) makes it an identity that
// survives small differences. What an earlier extractor knew by another line of the same
// failure keeps its identity (alias.go). [EvalBlocks] measures it against marked logs. Flaky or real is
// judged by class, nearest labelled neighbours, and what later attempts at the
// same commit came to (flake.go).
//
// # Suspects (culprit.go)
//
// What has changed since a step passed last on its branch is ranked by how likely it is
// to blame: commits, by whether they change what the failure names, how much they
// change, and how often their author's runs fail; lock files, the image, versions of
// actions, the host; and chance, as far as the failure is flaky.
//
// # Bounds
//
// Every map here has a limit: 200,000 counters, 100,000 windows of durations, 100,000
// nodes of all graphs (20,000 of one), 20,000 steps with green runs; every table of the
// store too, by repository. Nothing grows with the number of executions.
//
// What goes first is what is worth least, of a few taken at random, and of
// repositories that have most: no flood pushes out what others know ([makeRoom]).
// Worth halves in thirty days, since old failures foretell little; it doubles with how
// often something ran, since what ran once, on a branch that is gone, will not be asked
// about; and a failure is worth four passes, since of what never fails its parent says
// as much, while what a failure was and what ended it is said nowhere else. So single
// passes of dead branches go first, then what has not run for months, and last the
// failures of what runs daily. Tests that never failed go before those that did,
// signatures that came once before those that came back; of predictions sums stay.
package learn
