// Package webhook takes GitHub's deliveries: verify, record, acknowledge.
//
// Nothing else happens while GitHub waits. A delivery is bounded, all that come
// at once are bounded in sum (door.Bodies), its signature is checked over the raw
// body in constant time before a byte of it is parsed, and then it is stored, once
// for its delivery id, and answered with 202. What is not signed leaves nothing
// behind, and without a signature that could be right not a byte is read. What
// comes of it, planning a run or finding that there is nothing to run, happens
// afterwards from the stored event, and can happen again from there (replay).
//
// Answers say what became of the delivery, since they are what a person sees on
// the App's "recent deliveries" page:
//
//	202 accepted    stored; it will be looked at
//	202 duplicate   the id was there before; nothing is done twice
//	202 ignored     stored for the record: an event that starts nothing here
//	400             not JSON, without the headers that GitHub sends, or not the body
//	                of the event that it is said to be (shape.go)
//	401             no signature, or a wrong one; nothing was stored
//	403             of a repository that this server does not serve
//	408             it came too slowly
//	413             larger than the limit; nothing was stored
//	415             the webhook's content type is not application/json
//	503             the store did not take it, or too many come at once: GitHub may
//	                deliver again
//
// What is signed and still refused (400 for its shape, 403) is stored too, but for
// its payload, so that whoever runs the server sees it.
package webhook

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"mime"
	"net/http"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/door"
)

// Recorder stores events. fresh is false when the delivery is known already.
type Recorder interface {
	Record(ctx context.Context, e ci.Event, v Verdict) (id string, fresh bool, err error)
}

// Verdict is what the handler found out about a delivery. The zero Verdict is one
// to look at.
type Verdict struct {
	Ignored bool   // it starts nothing
	Refused string // why it is not let in
}

// Handler is POST /webhooks/github.
type Handler struct {
	Secret   string // of the webhook; deliveries are refused while it is ""
	MaxBody  int64  // bytes
	Recorder Recorder
	// Starts says whether an event of this name can start something here.
	Starts func(event string) bool
	// Serves says whether this server serves a repository (owner/name); nil leaves
	// that to who handles the event.
	Serves func(repository string) bool
	// Stored is called after a fresh event that may start something was stored.
	Stored func()
	Log    *slog.Logger
	Now    func() time.Time

	// Bodies bounds what is held of deliveries nobody has verified yet; nil is one
	// with its defaults, in memory.
	Bodies *door.Bodies

	once sync.Once
}

type answer struct {
	Status string `json:"status"`
	ID     string `json:"id,omitempty"`
	Reason string `json:"reason,omitempty"`
}

func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		reply(w, http.StatusMethodNotAllowed, answer{"refused", "", "deliveries are POSTed"})
		return
	}
	h.once.Do(func() {
		if h.Bodies == nil {
			h.Bodies = &door.Bodies{}
		}
	})
	if r.ContentLength > h.MaxBody {
		w.Header().Set("Connection", "close")
		h.large(w)
		return
	}
	want, reason := h.signature(r.Header.Get("X-Hub-Signature-256"))
	if reason != "" {
		w.Header().Set("Connection", "close") // what it carries stays unread
		h.refuse(w, r, reason, 0)
		return
	}
	sum := hmac.New(sha256.New, []byte(h.Secret))
	taken, err := h.Bodies.Take(w, r, h.MaxBody, door.Client(r.RemoteAddr), sum)
	if err != nil {
		var tooLarge *http.MaxBytesError
		switch {
		case errors.As(err, &tooLarge):
			h.large(w)
		case errors.Is(err, door.ErrFull):
			w.Header().Set("Retry-After", "10")
			reply(w, http.StatusServiceUnavailable, answer{"refused", "", "too many deliveries at once"})
		case errors.Is(err, door.ErrSlow):
			reply(w, http.StatusRequestTimeout, answer{"refused", "", "the body came too slowly"})
		case errors.Is(err, door.ErrKeep):
			h.Log.Error("delivery not kept", "err", err)
			w.Header().Set("Retry-After", "30")
			reply(w, http.StatusServiceUnavailable, answer{"refused", "", "the body could not be kept"})
		default:
			reply(w, http.StatusBadRequest, answer{"refused", "", "the body ended early"})
		}
		return
	}
	defer taken.Close()
	if !hmac.Equal(want, sum.Sum(nil)) {
		h.refuse(w, r, "the signature does not match: is the webhook's secret the one of this server?", taken.Size())
		return
	}
	body, err := taken.Bytes(r.Context())
	if err != nil {
		h.Log.Error("delivery not read back", "err", err)
		w.Header().Set("Retry-After", "30")
		reply(w, http.StatusServiceUnavailable, answer{"refused", "", "the body could not be kept"})
		return
	}
	// From here on it is GitHub, or somebody who knows the secret.
	if kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); kind != "application/json" {
		reply(w, http.StatusUnsupportedMediaType, answer{"refused", "", "set the webhook's content type to application/json"})
		return
	}
	event, delivery := r.Header.Get("X-GitHub-Event"), r.Header.Get("X-GitHub-Delivery")
	if !token(event, 100) || !token(delivery, 100) {
		reply(w, http.StatusBadRequest, answer{"refused", "", "X-GitHub-Event and X-GitHub-Delivery are missing or malformed"})
		return
	}
	var payload struct {
		Action     string `json:"action"`
		Repository struct {
			FullName string `json:"full_name"`
		} `json:"repository"`
	}
	if !utf8.Valid(body) || json.Unmarshal(body, &payload) != nil {
		reply(w, http.StatusBadRequest, answer{"refused", "", "the body is not a JSON object"})
		return
	}
	now := time.Now
	if h.Now != nil {
		now = h.Now
	}
	repository := payload.Repository.FullName
	v := Verdict{Ignored: event == "ping" || !h.Starts(event) || repository == ""}
	code := 0
	if err := Shape(event, body); err != nil {
		v.Refused, code = err.Error(), http.StatusBadRequest
	} else if !v.Ignored && h.Serves != nil && !h.Serves(repository) {
		v.Refused, code = NotServed(repository), http.StatusForbidden
	}
	id, fresh, err := h.Recorder.Record(r.Context(), ci.Event{
		Name: event, Action: payload.Action, Delivery: delivery, Repository: repository, Payload: body, Received: now(),
	}, v)
	switch {
	case err != nil:
		h.Log.Error("delivery not stored", "delivery", delivery, "err", err)
		w.Header().Set("Retry-After", "30")
		reply(w, http.StatusServiceUnavailable, answer{"refused", "", "the record could not be written"})
	case v.Refused != "":
		h.Log.Warn("delivery refused", "reason", v.Refused, "event", event, "delivery", delivery, "repository", repository)
		reply(w, code, answer{"refused", id, v.Refused})
	case !fresh:
		reply(w, http.StatusAccepted, answer{"duplicate", id, "this delivery was accepted before"})
	case event == "ping":
		reply(w, http.StatusAccepted, answer{"ignored", id, "pong"})
	case v.Ignored:
		reply(w, http.StatusAccepted, answer{"ignored", id, "a " + event + " event starts nothing here"})
	default:
		if h.Stored != nil {
			h.Stored()
		}
		reply(w, http.StatusAccepted, answer{"accepted", id, ""})
	}
}

// NotServed is why a delivery of such a repository is refused.
func NotServed(repository string) string {
	return "this server does not serve " + repository + " (setting repositories)"
}

func (h *Handler) large(w http.ResponseWriter) {
	reply(w, http.StatusRequestEntityTooLarge, answer{"refused", "", "the body is larger than this server's limit"})
}

// refuse answers what is not signed by whom it should be.
func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, reason string, size int64) {
	h.Log.Warn("delivery refused", "reason", reason, "from", r.RemoteAddr, "bytes", size)
	reply(w, http.StatusUnauthorized, answer{"refused", "", reason})
}

// signature reads the header that has it; a reason says why it cannot be right.
func (h *Handler) signature(header string) (sum []byte, reason string) {
	if h.Secret == "" {
		return nil, "this server has no webhook secret: it takes no deliveries"
	}
	text, ok := strings.CutPrefix(header, "sha256=")
	if !ok {
		return nil, "the delivery is not signed (X-Hub-Signature-256): set a secret for the webhook"
	}
	sum, err := hex.DecodeString(text)
	if err != nil || len(sum) != sha256.Size {
		return nil, "the signature is malformed"
	}
	return sum, ""
}

// Sign returns the HMAC-SHA256 of a body.
func Sign(secret string, body []byte) []byte {
	m := hmac.New(sha256.New, []byte(secret))
	m.Write(body)
	return m.Sum(nil)
}

// token reports whether s is a short word of the characters that event names
// and delivery ids are made of.
func token(s string, max int) bool {
	if s == "" || len(s) > max {
		return false
	}
	return strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") == ""
}

func reply(w http.ResponseWriter, status int, a answer) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(a)
}
