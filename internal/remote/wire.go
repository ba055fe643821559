package remote

import (
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/hearth-ci/hearth/internal/action"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/engine"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/git"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/network"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/suite"
	"github.com/hearth-ci/hearth/internal/worker"
)

// Protocol is the version of what workers and servers say to each other. Within a version
// fields are only added.
const Protocol = 1

// Root is below which path of the server workers ask.
const Root = "/api/workers/v1/"

// Headers of every request.
const (
	protocolHeader = "Hearth-Protocol"
	workerHeader   = "Hearth-Worker" // the worker's instance
	ticketHeader   = "Hearth-Ticket" // of requests to a job's services
	againHeader    = "Hearth-Again"  // of answers to what is to be asked again later
)

// Skew is how far apart the clocks of worker and server may be.
const Skew = 5 * time.Minute

// Patience is how long a job goes on while no server answers its worker.
const Patience = 15 * time.Minute

// Bounds, of one and, with maxAtOnce, in sum.
const (
	maxBody    = 16 << 20 // of a request that is read whole
	maxAtOnce  = 8        // such requests above smallBody at a time
	smallBody  = 64 << 10
	maxRecord  = 10 << 20 // its JSON: a job's outputs are the most there is
	maxBatch   = 5000     // records of a request
	maxLabels  = 100
	maxLabel   = 256
	claimWait  = 25 * time.Second
	maxPulled  = 8 << 30 // of a tree that is fetched
	maxRefusal = 20 << 10
	maxKeys    = 100_000 // claims that are remembered
	maxSeen    = 10_000  // workers that are
)

// Hello is what a server says of itself.
type Hello struct {
	Protocol int       `json:"protocol"`
	Version  string    `json:"version"`
	Time     time.Time `json:"time"`
	Worker   string    `json:"worker"` // who the token says it is
}

type claimRequest struct {
	Time      time.Time `json:"time"` // by the worker's clock
	Key       []byte    `json:"key"`  // X25519, for this claim alone
	Labels    []string  `json:"labels"`
	CPUs      int       `json:"cpus"`
	MemoryMiB int       `json:"memory_mib"`
	Slots     int       `json:"slots,omitempty"` // jobs that it runs at once, for people
	WaitMS    int64     `json:"wait_ms"`
	// Holding are the attempts that the worker knows of. Another one of its has no worker:
	// the answer that gave it away was lost.
	Holding []fence `json:"holding"`
}

type fence struct {
	Job     string `json:"job"`
	Attempt int    `json:"attempt"`
}

func (f fence) String() string { return f.Job + "/" + strconv.Itoa(f.Attempt) }

type claimAnswer struct {
	fence
	LeaseMS int64  `json:"lease_ms"`
	Sealed  []byte `json:"sealed"` // a brief
}

// brief is all that a worker is told of a job.
type brief struct {
	Run     *plan.Run         `json:"run"`
	Job     string            `json:"job"` // key
	Needs   expr.Value        `json:"needs"`
	Secrets map[string]string `json:"secrets"`
	Token   string            `json:"token"`

	RunID      string            `json:"run_id"`
	Repository string            `json:"repository"`
	File       string            `json:"file"`
	Ref        string            `json:"ref"`
	SHA        string            `json:"sha"`
	Attempt    int               `json:"attempt"`
	Env        map[string]string `json:"env,omitempty"`
	Tests      []string          `json:"tests,omitempty"`
	Tree       string            `json:"tree,omitempty"`
	TakesImage string            `json:"takes_image,omitempty"`
	Points     worker.Points     `json:"points,omitempty"`
	Risk       map[int]float64   `json:"risk,omitempty"` // by step
	Mode       learn.Mode        `json:"mode"`
	Network    network.Policy    `json:"network"`
	CPUs       int               `json:"cpus"`
	MemoryMiB  int               `json:"memory_mib"`
	Source     bool              `json:"source"` // there is one
	Actions    bool              `json:"actions"`

	Results engine.Results `json:"results"`
	IDToken engine.IDToken `json:"id_token"`
	Ticket  worker.Ticket  `json:"ticket"`
}

type beatRequest struct {
	// Known says that the worker knows that the job is to end.
	Known bool `json:"known"`
}

type beatAnswer struct {
	Cancel string `json:"cancel,omitempty"` // why the job is to end
}

type recordsRequest struct {
	First   int64             `json:"first"` // the number of the first one, from 1
	Records []json.RawMessage `json:"records"`
}

type recordsAnswer struct {
	Next int64 `json:"next"` // all before it are on record
}

type finishRequest struct {
	Conclusion     ci.Conclusion     `json:"conclusion"`
	Outputs        map[string]string `json:"outputs,omitempty"`
	Reason         string            `json:"reason,omitempty"`
	Infrastructure bool              `json:"infrastructure,omitempty"`
}

type releaseRequest struct {
	Reason string `json:"reason"`
}

// failure is a learn.Failure, of which the server knows the rest.
type failure struct {
	Step     int      `json:"step"`
	Name     string   `json:"name"`
	Command  string   `json:"command"`
	Attempt  int      `json:"attempt"`
	ExitCode int      `json:"exit_code"`
	NoRetry  bool     `json:"no_retry"`
	Image    string   `json:"image"`
	Host     string   `json:"host"`
	Lines    []string `json:"lines"`
}

type retryRequest struct {
	Failure     failure        `json:"failure"`
	Explanation ci.Explanation `json:"explanation"`
}

// testRun is a learn.TestRun, of which the server knows the rest.
type testRun struct {
	Name      string         `json:"name"`
	Command   string         `json:"command"`
	Signature string         `json:"signature"`
	Green     bool           `json:"green"`
	Results   []suite.Result `json:"results"`
}

type checkoutRequest struct {
	Owner   string       `json:"owner,omitempty"` // of another repository; "" is the run's own
	Repo    string       `json:"repo,omitempty"`
	Ref     string       `json:"ref"`
	Depth   int          `json:"depth"`
	Tags    bool         `json:"tags"`
	Modules bool         `json:"modules"` // its submodules are wanted
	Within  []git.Module `json:"within,omitempty"`
	LFS     bool         `json:"lfs"`
	Token   string       `json:"token,omitempty"`
}

// pulled is how a stream ended: what there is to say beside its bytes.
type pulled struct {
	SHA        string       `json:"sha,omitempty"`
	Repository string       `json:"repository,omitempty"`
	Notes      []string     `json:"notes,omitempty"`
	Modules    []git.Module `json:"modules,omitempty"`
	HasModules bool         `json:"has_modules,omitempty"`
	Input      string       `json:"input,omitempty"` // an *action.InputError
	NotHere    bool         `json:"not_here,omitempty"`
	Error      string       `json:"error,omitempty"`
}

func (p *pulled) err() error {
	switch {
	case p.Input != "":
		return &action.InputError{Msg: p.Input}
	case p.NotHere:
		return action.ErrNotHere
	case p.Error != "":
		return errors.New(p.Error)
	}
	return nil
}

// refusal is an answer that is no 200, in words.
type refusal struct {
	Status  int    `json:"-"`
	Message string `json:"error"`
	// Over says that the job has ended.
	Over bool `json:"over,omitempty"`
}

func (r *refusal) Error() string { return r.Message }

func refuse(status int, format string, args ...any) error {
	return &refusal{Status: status, Message: fmt.Sprintf(format, args...)}
}

// errGone is what who does not hold an attempt is told.
func errGone(f fence) error {
	return refuse(http.StatusGone, "attempt %d at job %s is not yours (any more): end it; nothing of it is taken", f.Attempt, f.Job)
}

var kem = hpke.DHKEM(ecdh.X25519())

// info binds what is sealed to the claim that it answers.
func info(f fence) []byte { return []byte("hearth worker 1 " + f.String()) }

func seal(key []byte, f fence, b *brief) ([]byte, error) {
	pub, err := kem.NewPublicKey(key)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "the key of the claim is none: %v", err)
	}
	text, err := json.Marshal(b)
	if err != nil {
		return nil, err
	}
	return hpke.Seal(pub, hpke.HKDFSHA256(), hpke.AES256GCM(), info(f), text)
}

func open(key hpke.PrivateKey, f fence, sealed []byte) (*brief, error) {
	text, err := hpke.Open(key, hpke.HKDFSHA256(), hpke.AES256GCM(), info(f), sealed)
	if err != nil {
		return nil, fmt.Errorf("what came with job %s is not sealed to this worker: %w", f.Job, err)
	}
	b := &brief{}
	if err := json.Unmarshal(text, b); err != nil {
		return nil, fmt.Errorf("what came with job %s: %w", f.Job, err)
	}
	return b, nil
}

func newSecret() []byte {
	b := make([]byte, 32)
	rand.Read(b) // never fails
	return b
}
