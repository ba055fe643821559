package remote_test

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/door"
	"github.com/hearth-ci/hearth/internal/remote"
	"github.com/hearth-ci/hearth/internal/store"
)

// rogue speaks the protocol by hand.
type rogue struct {
	s        *site
	token    string
	protocol string
	name     string
}

func (s *site) rogue(name string) *rogue {
	s.t.Helper()
	secret, _, err := door.OpenPasses(s.dir+"/passes").Issue(door.Worker, "west", time.Hour)
	if err != nil {
		s.t.Fatal(err)
	}
	return &rogue{s: s, token: secret, protocol: fmt.Sprint(remote.Protocol), name: name}
}

// ask returns the status and the answer.
func (r *rogue) ask(path string, body any) (int, map[string]any) {
	r.s.t.Helper()
	b, ok := body.([]byte)
	if !ok {
		var err error
		if b, err = json.Marshal(body); err != nil {
			r.s.t.Fatal(err)
		}
	}
	req, err := http.NewRequest(http.MethodPost, r.s.server.first+remote.Root+path, bytes.NewReader(b))
	if err != nil {
		r.s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+r.token)
	req.Header.Set("Hearth-Protocol", r.protocol)
	req.Header.Set("Hearth-Worker", r.name)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.s.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	var v map[string]any
	json.Unmarshal(text, &v)
	return resp.StatusCode, v
}

func claimOf(key []byte, at time.Time) map[string]any {
	return map[string]any{"time": at, "key": key, "labels": []string{"ubuntu-latest"}, "wait_ms": 5000}
}

// claim takes a job, and returns the path of its attempt.
func (r *rogue) claim() string {
	r.s.t.Helper()
	key, err := hpke.DHKEM(ecdh.X25519()).GenerateKey()
	if err != nil {
		r.s.t.Fatal(err)
	}
	code, a := r.ask("claim", claimOf(key.PublicKey().Bytes(), time.Now()))
	if code != http.StatusOK {
		r.s.t.Fatalf("%d %v", code, a)
	}
	return fmt.Sprintf("jobs/%s/%v/", a["job"], a["attempt"])
}

// refused wants an answer with a status and a word.
func (r *rogue) refused(status int, says, path string, body any) {
	r.s.t.Helper()
	code, a := r.ask(path, body)
	if text, _ := a["error"].(string); code != status || !strings.Contains(text, says) {
		r.s.t.Errorf("%s: %d %v, want %d with %q", path, code, a, status, says)
	}
}

// stored is everything of the job on record that its worker told.
func (s *site) told() (records int, lines []string, job store.StoredJob) {
	s.t.Helper()
	lines, job = s.lines("one", "")
	runs, err := s.store.Runs(context.Background(), store.RunFilter{})
	if err != nil || len(runs) != 1 {
		s.t.Fatal(err, runs)
	}
	s.store.EachRunRecord(context.Background(), runs[0].ID, func(r ci.Record) {
		if r.Sent > 0 {
			records++
		}
	})
	return records, lines, job
}

func randomKey() []byte {
	b := make([]byte, 32)
	rand.Read(b)
	return b
}

const one = "  one:\n    runs-on: ubuntu-latest\n    steps: [{run: echo}]\n"

// Whoever has no token, another protocol, another time or an old claim gets no job, and is
// told why: all of them are left in the queue.
func TestAttackClaims(t *testing.T) {
	s := newSite(t, "")
	s.push(one)
	r := s.rogue("rogue")
	with := func(change func(*rogue)) *rogue { c := *r; change(&c); return &c }
	fresh := claimOf(randomKey(), time.Now())
	with(func(r *rogue) { r.token = "guess" }).refused(401, "hearth token --worker", "claim", fresh)
	with(func(r *rogue) { r.token = "" }).refused(401, "token", "claim", fresh)
	session, _, err := door.OpenPasses(s.dir+"/passes").Issue(door.Session, "somebody", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	with(func(r *rogue) { r.token = session }).refused(401, "token", "claim", fresh) // it opens the pages, and no jobs
	with(func(r *rogue) { r.protocol = fmt.Sprint(remote.Protocol + 2) }).refused(426, "bring the server up to date", "claim", fresh)
	with(func(r *rogue) { r.protocol = fmt.Sprint(remote.Protocol - 2) }).refused(426, "bring the worker up to date", "claim", fresh)
	with(func(r *rogue) { r.protocol = "" }).refused(426, "does not say which version", "claim", fresh)
	with(func(r *rogue) { r.name = "../../west" }).refused(400, "does not say who it is", "claim", fresh)
	r.refused(409, "1h0m0s ahead of", "claim", claimOf(randomKey(), time.Now().Add(time.Hour)))
	r.refused(409, "1h0m0s behind", "claim", claimOf(randomKey(), time.Now().Add(-time.Hour)))
	r.refused(400, "key", "claim", claimOf([]byte("short"), time.Now()))
	r.refused(400, "labels", "claim", map[string]any{"time": time.Now(), "key": randomKey()})
	r.refused(413, "nothing of it was taken", "claim", bytes.Repeat([]byte(" "), 17<<20))
	// One version apart is near enough.
	key := randomKey()
	none := map[string]any{"time": time.Now(), "key": key, "labels": []string{"gpu"}, "wait_ms": 1}
	if code, a := with(func(r *rogue) { r.protocol = fmt.Sprint(remote.Protocol + 1) }).ask("claim", none); code != http.StatusNoContent {
		t.Errorf("one version apart: %d %v", code, a)
	}
	none["labels"] = []string{"ubuntu-latest"}
	r.refused(409, "was made before", "claim", none) // the same key again
	var state string
	s.until("the job is queued", 10*time.Second, func() bool {
		_, job := s.lines("one", "")
		state, _, _, _, err = s.store.QueueState(context.Background(), job.ID)
		return state != ""
	})
	if records, lines, job := s.told(); state != "queued" || records+len(lines) != 0 || job.Attempt > 1 {
		t.Errorf("%s: %d records, %q, %+v", state, records, lines, job)
	}
}

func records(first int, list ...any) map[string]any {
	return map[string]any{"first": first, "records": list}
}

// Who does not hold an attempt writes nothing about it, and who holds one writes about
// nothing else, no more than a record's worth, and each record once.
func TestAttackForeignAttempt(t *testing.T) {
	s := newSiteWith(t, "", func(f *serverSettings) { f.LeaseMS = 60_000 })
	s.push(one)
	mine, other := s.rogue("mine"), s.rogue("other")
	at := mine.claim()
	line := map[string]any{"type": "log", "stream": "stdout", "step": 1, "text": "told", "time": time.Now()}
	end := map[string]any{"conclusion": "success"}
	next := strings.Replace(at, "/1/", "/2/", 1)
	for _, what := range []string{"beat", "records", "finish", "release", "checkout", "action", "explain", "tests", "hand", "uploads", "service/twirp/x"} {
		body := map[string]any{"records": records(1, line), "finish": end}[what]
		other.refused(410, "not yours", at+what, body)
		mine.refused(410, "not yours", next+what, body)
		mine.refused(410, "not yours", "jobs/"+ci.NewID()+"/1/"+what, body)
		mine.refused(404, "no such attempt", "jobs/..%2f..%2fx/1/"+what, body)
	}
	// What is too large or no job's to tell, alone or among others: nothing is taken.
	big := map[string]any{"type": "log", "stream": "stdout", "text": strings.Repeat("x", 11<<20)}
	mine.refused(413, "nothing was taken", at+"records", records(1, line, big))
	mine.refused(400, "not a job's to tell", at+"records", records(1, line, map[string]any{"type": "run.finished", "conclusion": "success"}))
	mine.refused(400, "no conclusion", at+"records", records(1, line, map[string]any{"type": "job.finished", "conclusion": "grand"}))
	mine.refused(413, "more outputs", at+"records", records(1, line,
		map[string]any{"type": "job.finished", "conclusion": "success", "outputs": map[string]string{"a": strings.Repeat("x", ci.MaxOutput+1)}}))
	mine.refused(400, "counted from 1", at+"records", records(0, line))
	mine.refused(400, "no conclusion", at+"finish", map[string]any{"conclusion": "grand"})
	if records, lines, job := s.told(); records+len(lines) != 0 || job.Status == ci.Completed {
		t.Fatalf("%d records, %q, %+v", records, lines, job)
	}
	// A record says it is of another run's job; it comes again; a part of it comes again.
	theirs := map[string]any{"type": "log", "stream": "stdout", "text": "1", "run": ci.NewID(), "job": "x", "job_key": "y", "seq": 99, "sent": 7,
		"time": time.Now().Add(time.Hour)}
	for range 2 {
		if code, a := mine.ask(at+"records", records(1, theirs, line)); code != 200 || a["next"] != 3.0 {
			t.Errorf("%d %v", code, a)
		}
	}
	if code, a := mine.ask(at+"records", records(2, line, line)); code != 200 || a["next"] != 4.0 {
		t.Errorf("%d %v", code, a)
	}
	_, lines, job := s.told()
	if strings.Join(lines, " ") != "1 told told" {
		t.Errorf("%q", lines)
	}
	for l := range s.store.Log(context.Background(), store.LogQuery{Run: job.RunID, Job: "one"}) {
		if l.Record.Time.After(time.Now().Add(time.Minute)) {
			t.Errorf("a line of the future: %v", l.Record.Time)
		}
	}
	// The end counts once, and afterwards nothing does.
	if code, a := mine.ask(at+"finish", end); code != 200 {
		t.Errorf("%d %v", code, a)
	}
	mine.refused(410, "has ended", at+"records", records(4, line))
	mine.refused(410, "has ended", at+"finish", map[string]any{"conclusion": "failure"})
	if _, lines, job := s.told(); len(lines) != 3 || job.Conclusion != ci.Success {
		t.Errorf("%q, %+v", lines, job)
	}
}

// What comes with a job is sealed: it is in no answer in the clear, and only the key of
// that claim opens it.
func TestAttackSealedJob(t *testing.T) {
	s := newSite(t, "")
	s.push(strings.Replace(one, "run: echo", "run: 'echo ${{ secrets.DEPLOY_KEY }}'", 1))
	r := s.rogue("mine")
	key, err := hpke.DHKEM(ecdh.X25519()).GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	code, a := r.ask("claim", claimOf(key.PublicKey().Bytes(), time.Now()))
	if code != http.StatusOK {
		t.Fatalf("%d %v", code, a)
	}
	text, _ := json.Marshal(a)
	var answer struct{ Sealed []byte }
	if err := json.Unmarshal(text, &answer); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(answer.Sealed, []byte("hunter2")) || bytes.Contains(answer.Sealed, []byte("secrets")) {
		t.Error("the secret is in the clear")
	}
	open := func(k hpke.PrivateKey, job any) error {
		_, err := hpke.Open(k, hpke.HKDFSHA256(), hpke.AES256GCM(), fmt.Appendf(nil, "hearth worker 1 %v/%v", job, a["attempt"]), answer.Sealed)
		return err
	}
	another, _ := hpke.DHKEM(ecdh.X25519()).GenerateKey()
	if err := open(key, a["job"]); err != nil {
		t.Errorf("its own key: %v", err)
	}
	if open(another, a["job"]) == nil || open(key, ci.NewID()) == nil {
		t.Error("another key, or another job's name, opens it")
	}
}

// A token that is taken back opens nothing from that moment on, and another one of the
// same worker does.
func TestAttackRevokedToken(t *testing.T) {
	s := newSiteWith(t, "", func(f *serverSettings) { f.LeaseMS = 60_000 })
	s.push(one)
	passes := door.OpenPasses(s.dir + "/passes")
	r := s.rogue("mine")
	at := r.claim()
	old := r.token
	fresh, _, err := passes.Issue(door.Worker, "west", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pass, err := passes.CheckWorker(old)
	if err != nil {
		t.Fatal(err)
	}
	r.token = fresh // both are good for a while
	if code, a := r.ask(at+"hand", 1); code != 200 {
		t.Errorf("the new one: %d %v", code, a)
	}
	if _, err := passes.Revoke(pass.ID, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	r.token = old
	r.refused(401, "hearth token --worker", at+"hand", 1)
	r.token = fresh
	if code, a := r.ask(at+"hand", 1); code != 200 {
		t.Errorf("the new one, alone: %d %v", code, a)
	}
}
