package github

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"reflect"
	"strings"
	"time"

	gh "github.com/google/go-github/v88/github"

	"github.com/hearth-ci/hearth/internal/forge"
)

// What GitHub is asked before something is trusted: who may see a repository, whom
// it lets use its workflows, who may write to it, whether it was GitHub that sent
// a body.

// Visibility asks whether a repository is public, internal or private.
func (r *Repo) Visibility(ctx context.Context) (visibility string, err error) {
	err = r.app.try(ctx, "visibility of "+r.owner+"/"+r.name, func() error {
		repo, _, err := r.client.Repositories.Get(ctx, r.owner, r.name)
		if err != nil {
			return err
		}
		switch visibility = repo.GetVisibility(); {
		case visibility == "public" && repo.GetPrivate():
			visibility = "private"
		case visibility != "": // as it says
		case repo.Private != nil && !*repo.Private:
			visibility = "public"
		default:
			visibility = "private"
		}
		return nil
	})
	return visibility, err
}

// Shares asks which other repositories may use the actions and workflows of a
// private one: none, user, organization or enterprise.
func (r *Repo) Shares(ctx context.Context) (level string, err error) {
	err = r.app.try(ctx, "access to the workflows of "+r.owner+"/"+r.name, func() error {
		a, _, err := r.client.Repositories.GetActionsAccessLevel(ctx, r.owner, r.name)
		if err == nil && a.AccessLevel != nil {
			level = *a.AccessLevel
		}
		return err
	})
	return level, err
}

// MayWrite asks whether a user may push to the repository.
func (r *Repo) MayWrite(ctx context.Context, login string) (may bool, err error) {
	if !validName(strings.TrimSuffix(login, "[bot]")) {
		return false, nil
	}
	err = r.app.try(ctx, "what a user may do in "+r.owner+"/"+r.name, func() error {
		p, _, err := r.client.Repositories.GetPermissionLevel(ctx, r.owner, r.name, login)
		may = err == nil && p.Permission != nil && (*p.Permission == "admin" || *p.Permission == "write")
		return err
	})
	var e *forge.Error
	if errors.As(err, &e) && e.Status == http.StatusNotFound {
		return false, nil
	}
	return may, err
}

// maxDeliveries is how many pages of a hundred deliveries are looked through.
const maxDeliveries = 20

// Delivered asks whether GitHub sent the App this very body, under this delivery id
// and event. It looks through the App's deliveries back to since, of which GitHub
// keeps those of the last days.
func (a *App) Delivered(ctx context.Context, id, event string, body []byte, since time.Time) (bool, error) {
	c, err := a.client(a.apps)
	if err != nil {
		return false, err
	}
	opts := gh.ListCursorOptions{PerPage: 100}
	for range maxDeliveries {
		var list []*gh.HookDelivery
		var resp *gh.Response
		if err := a.try(ctx, "the App's deliveries", func() (err error) {
			list, resp, err = c.Apps.ListHookDeliveries(ctx, &opts)
			return err
		}); err != nil {
			return false, err
		}
		older := false
		for _, d := range list {
			older = older || d.DeliveredAt != nil && d.DeliveredAt.Before(since)
			if d.ID == nil || d.GUID == nil || *d.GUID != id || d.Event == nil || *d.Event != event {
				continue
			}
			var whole *gh.HookDelivery
			if err := a.try(ctx, "a delivery of the App's", func() (err error) {
				whole, _, err = c.Apps.GetHookDelivery(ctx, *d.ID)
				return err
			}); err != nil {
				return false, err
			}
			if whole.Request != nil && whole.Request.RawPayload != nil && sameJSON(*whole.Request.RawPayload, body) {
				return true, nil
			}
		}
		if opts.Cursor = resp.Cursor; opts.Cursor == "" || older {
			break
		}
	}
	return false, nil
}

// sameJSON reports whether two texts are the same JSON value.
func sameJSON(a, b []byte) bool {
	var x, y any
	for _, p := range []struct {
		text []byte
		into *any
	}{{a, &x}, {b, &y}} {
		dec := json.NewDecoder(strings.NewReader(string(p.text)))
		dec.UseNumber()
		if dec.Decode(p.into) != nil {
			return false
		}
	}
	return reflect.DeepEqual(x, y)
}
