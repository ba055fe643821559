package workflow

import "github.com/hearth-ci/hearth/internal/expr"

// Happening is something that happened and may start workflows: a webhook
// delivery, a tick of the clock, a request to run by hand.
type Happening struct {
	// Event is the name under `on:`. One webhook may be several: see
	// [TriggerEvents].
	Event string `json:"event"`
	// Action is the activity type: opened, synchronize, … For repository_dispatch
	// it is the event_type. Empty means not known.
	Action string `json:"action,omitempty"`
	// Ref is what was pushed, refs/heads/main or refs/tags/v1; for other events
	// the ref that the run is for.
	Ref string `json:"ref,omitempty"`
	// BaseRef and HeadRef are the branches of a pull request, with or without
	// refs/heads/. BaseRef is also the target branch of a merge group. Empty means
	// that the payload says it.
	BaseRef string `json:"base_ref,omitempty"`
	HeadRef string `json:"head_ref,omitempty"`
	SHA     string `json:"sha,omitempty"`
	// Payload is the webhook's payload, github.event. It may be null.
	Payload expr.Value `json:"payload"`
	// ChangedFiles are the changed paths from the root of the repository, if
	// FilesKnown: of a two-dot diff for a push, a three-dot diff for a pull request.
	ChangedFiles []string `json:"changed_files,omitempty"`
	FilesKnown   bool     `json:"files_known,omitempty"`
	// Commits is how many commits a push brought; 0 means as many as the payload
	// lists.
	Commits int `json:"commits,omitempty"`
	// HeadMessage is the message of the head commit, which payloads of pull
	// requests lack. Empty means that the payload says it.
	HeadMessage string `json:"head_message,omitempty"`
	// DefaultBranch is the repository's, main for instance. It may be empty.
	DefaultBranch string `json:"default_branch,omitempty"`
}

// Decision says whether a workflow runs, and why or why not.
type Decision struct {
	Run    bool
	Reason string // a sentence for people, without a full stop
	Pos    Pos    // what in the workflow decided; zero if nothing there did
}
