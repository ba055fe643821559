package webhook

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/hearth-ci/hearth/internal/workflow"
)

// Happened is what a delivery's body alone says of what happened. What only the forge
// knows is left out: the merge commit of a pull request, the commit of a tag or of the
// default branch. Package dispatch asks it.
type Happened struct {
	Repository string // owner/name
	Ref        string // refs/heads/main; of what is about no ref the default branch
	SHA        string // "" where the body names no commit to run at
	Actor      string
	Fork       bool // it is a pull request of another repository
}

// Read checks a body's shape and reads from it what happened.
func Read(event string, body []byte) (h Happened, err error) {
	if err := Shape(event, body); err != nil {
		return h, err
	}
	if len(workflow.TriggerEvents(event)) == 0 {
		return h, fmt.Errorf("%s starts no workflows", event)
	}
	var p struct {
		Ref     string `json:"ref"`
		RefType string `json:"ref_type"`
		After   string `json:"after"`
		Deleted bool   `json:"deleted"`
		Number  int    `json:"number"`
		Pull    *struct {
			Number int `json:"number"`
			Head   struct {
				SHA  string `json:"sha"`
				Repo *struct {
					FullName string `json:"full_name"`
				} `json:"repo"`
			} `json:"head"`
		} `json:"pull_request"`
		Release *struct {
			TagName string `json:"tag_name"`
		} `json:"release"`
		MergeGroup *struct {
			HeadRef string `json:"head_ref"`
			HeadSHA string `json:"head_sha"`
		} `json:"merge_group"`
		Deployment *struct {
			Ref string `json:"ref"`
			SHA string `json:"sha"`
		} `json:"deployment"`
		Repository struct {
			FullName      string `json:"full_name"`
			DefaultBranch string `json:"default_branch"`
		} `json:"repository"`
		Sender struct {
			Login string `json:"login"`
		} `json:"sender"`
	}
	if err := json.Unmarshal(body, &p); err != nil {
		return h, fmt.Errorf("the body is not what GitHub sends for %s: %w", event, err)
	}
	h = Happened{Repository: p.Repository.FullName, Actor: p.Sender.Login, Ref: "refs/heads/" + p.Repository.DefaultBranch}
	if h.Repository == "" {
		return h, fmt.Errorf("the body of %s names no repository", event)
	}
	switch {
	case event == "push":
		h.Ref, h.SHA = p.Ref, p.After
		if p.Deleted || strings.Trim(p.After, "0") == "" {
			return h, fmt.Errorf("the push deletes %s: there is nothing to run", p.Ref)
		}
	case p.Pull != nil && (event == "pull_request" || event == "pull_request_review" || event == "pull_request_review_comment"):
		n := p.Pull.Number
		if n == 0 {
			n = p.Number
		}
		h.Ref, h.SHA = fmt.Sprintf("refs/pull/%d/merge", n), p.Pull.Head.SHA
		h.Fork = p.Pull.Head.Repo == nil || !strings.EqualFold(p.Pull.Head.Repo.FullName, h.Repository)
	case event == "create" && p.RefType == "tag":
		h.Ref = "refs/tags/" + p.Ref
	case event == "create" && p.RefType == "branch":
		h.Ref = "refs/heads/" + p.Ref
	case event == "create":
		return h, fmt.Errorf("it creates neither a branch nor a tag: %q", p.RefType)
	case event == "workflow_dispatch" && strings.HasPrefix(p.Ref, "refs/"):
		h.Ref = p.Ref
	case event == "workflow_dispatch" && p.Ref != "":
		h.Ref = "refs/heads/" + p.Ref
	case p.Release != nil:
		h.Ref = "refs/tags/" + p.Release.TagName
	case p.MergeGroup != nil:
		h.Ref, h.SHA = p.MergeGroup.HeadRef, p.MergeGroup.HeadSHA
	case p.Deployment != nil:
		h.Ref, h.SHA = p.Deployment.Ref, p.Deployment.SHA
	}
	return h, nil
}
