// Package workflow reads workflow files as GitHub reads them, links those that
// call each other, and decides which happenings run them.
//
// # Reading
//
// A file passes through four layers, each of which knows nothing of the next:
//
//   - yaml.go composes YAML nodes with positions and says what a scalar is, by
//     the YAML 1.2 core schema: on, yes and 2002-12-14 are strings, 0x10 and 1e3
//     are numbers. Anchors and aliases are followed; merge keys and tags of
//     other types are refused.
//   - reader.go holds the nodes to a [Schema] (schema.go, events.go): which keys,
//     kinds of values, contexts and functions are allowed where. It recognises
//     ${{ }}, and turns numbers into text where text is wanted. The result is a
//     tree of [Value].
//   - parse.go turns the tree into a [Workflow] and checks what a schema cannot
//     say: ids, matrices, groups, conditions, the graph of needs. `if` gets its
//     implied success() here, and steps get the ids GitHub gives them.
//   - link.go reads called workflows and checks calls: inputs, secrets,
//     permissions, limits.
//
// Messages, positions and limits are GitHub's, tested by its own goldens. What
// differs is on purpose: GitHub stops after the layer that found an error, and
// after ten errors; here everything is reported at once. A problem is a
// [Diagnostic], never a Go error, and names the file, a place, often a hint. Once
// a value was reported, later layers pass over it, so that one mistake is one
// diagnostic.
//
// In `on:` GitHub overlooks keys that an event does not have. Those are advice,
// not errors: an Advice never stops anything.
//
// # Triggers
//
// [Workflow.Decide] says whether a [Happening] runs a workflow and why (not).
// Events differ by data (trigger_events.go); patterns are glob.go.
//
// A Workflow and all below it do not change after reading and linking; they are
// safe for concurrent use.
package workflow
