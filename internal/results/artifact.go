package results

import (
	"cmp"
	"mime"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

func deleteArtifacts(all []Artifact, which func(Artifact) bool) []Artifact {
	return slices.DeleteFunc(all, which)
}

// checkName is GitHub's check, and what file systems want.
func checkName(name string) error {
	if name == "" {
		return refuse(invalidArgument, "name must not be empty")
	}
	if len(name) > 255 || name == "." || name == ".." {
		return refuse(invalidArgument, "an artifact's name may be at most 255 bytes long, and neither . nor ..")
	}
	if i := strings.IndexFunc(name, func(r rune) bool { return strings.ContainsRune(`":<>|*?\/`, r) || unicode.IsControl(r) }); i >= 0 {
		return refuse(invalidArgument, `the artifact name is not valid: %q. None of " : < > | * ? \ / and no control characters may be in it`, name)
	}
	return nil
}

// own checks that a request is about the session's run.
func (n *Session) own(m message) error {
	run, err := m.text("workflow_run_backend_id")
	if err != nil {
		return err
	}
	if run != n.job.Run {
		return refuse(permissionDenied, "the token is for run %s alone", n.job.Run)
	}
	return nil
}

// mine reports whether the session's job sees an artifact.
func (n *Session) mine(a Artifact) bool {
	return a.Run == n.job.Run && a.Attempt <= n.job.Attempt && a.Expires.After(n.store.now())
}

// taken reports whether a name cannot be given any more.
func (n *Session) taken(all []Artifact, name string) error {
	jobs := 0
	for _, a := range all {
		if a.Run != n.job.Run || a.Attempt != n.job.Attempt {
			continue
		}
		if a.Name == name {
			return refuse(alreadyExists, "an artifact with this name already exists on the workflow run")
		}
		if a.Job == n.job.Key {
			jobs++
		}
	}
	if jobs >= n.store.limits.JobArtifacts {
		return refuse(resourceExhausted, "a job may have at most %d artifacts", n.store.limits.JobArtifacts)
	}
	if len(all) >= n.store.limits.Entries {
		return refuse(permissionDenied, "insufficient usage to create artifact: the repository has %d", len(all))
	}
	return nil
}

// most is how many bytes the repository's artifacts may have with this job's.
func (n *Session) most() int64 {
	if n.job.Stranger {
		return n.store.limits.ArtifactBytes / 2
	}
	return n.store.limits.ArtifactBytes
}

func (n *Session) createArtifact(m message) (any, error) {
	if err := n.own(m); err != nil {
		return nil, err
	}
	name, err := m.text("name")
	if err != nil {
		return nil, err
	}
	if err := checkName(name); err != nil {
		return nil, err
	}
	kind, err := m.text("mime_type")
	if err != nil {
		return nil, err
	}
	if kind != "" {
		if _, _, err := mime.ParseMediaType(kind); err != nil || len(kind) > 255 {
			return nil, refuse(invalidArgument, "mime_type is none")
		}
	}
	now := n.store.now()
	expires, err := m.time("expires_at")
	if err != nil {
		return nil, err
	}
	if latest := now.Add(n.store.limits.Age); expires.IsZero() || expires.After(latest) {
		expires = latest
	}
	var u *upload
	err = n.store.update(n.job.Repository, func(p *place) error {
		if err := n.taken(p.Artifacts, name); err != nil {
			return err
		}
		if p.artifactBytes() >= n.most() {
			return refuse(permissionDenied, "insufficient usage to create artifact: the repository's take more than %d MiB", n.most()>>20)
		}
		u, err = n.begin(false)
		return err
	})
	if err != nil {
		return nil, err
	}
	u.kind, u.expires = cmp.Or(kind, "application/zip"), expires
	// One that was begun before and not finished is forgotten: the step is tried again.
	n.mu.Lock()
	old := n.uploads[n.pending[name]]
	n.pending[name] = u.id
	n.mu.Unlock()
	if old != nil {
		if err := n.end(old); err != nil {
			return nil, err
		}
	}
	return map[string]any{"ok": true, "signed_upload_url": n.sign(uploadsPath+u.id, "w", uploadTime, "", "")}, nil
}

func (n *Session) finalizeArtifact(m message) (any, error) {
	if err := n.own(m); err != nil {
		return nil, err
	}
	name, err := m.text("name")
	if err != nil {
		return nil, err
	}
	size, err := m.number("size")
	if err != nil {
		return nil, err
	}
	hash, err := m.text("hash")
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	u := n.uploads[n.pending[name]]
	n.mu.Unlock()
	if u == nil {
		return nil, refuse(notFound, "no artifact %.255q is being uploaded by this job", name)
	}
	var id int64
	err = u.committed(func(file, digest string, have int64) error {
		// What is not sent is nothing: fields that are zero are left out.
		if max(size, 0) != have {
			return refuse(invalidArgument, "%d bytes arrived, and the client says %d", have, max(size, 0))
		}
		if hash != "" && hash != digest {
			return refuse(invalidArgument, "the bytes that arrived have digest %s, and the client says %.100s", digest, hash)
		}
		return n.store.update(n.job.Repository, func(p *place) error {
			if err := n.taken(p.Artifacts, name); err != nil {
				return err
			}
			if p.artifactBytes()+have > n.most() {
				return refuse(permissionDenied, "insufficient usage to create artifact: the repository's would take more than %d MiB", n.most()>>20)
			}
			if err := p.keep(file, digest); err != nil {
				return err
			}
			id = p.next()
			p.Artifacts = append(p.Artifacts, Artifact{ID: id, Run: n.job.Run, Attempt: n.job.Attempt, Job: n.job.Key,
				Name: name, Type: u.kind, Size: have, Digest: digest, Created: n.store.now().UTC(), Expires: u.expires.UTC()})
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	if n.pending[name] == u.id {
		delete(n.pending, name)
	}
	n.mu.Unlock()
	n.store.log.Debug("artifact", "repository", n.job.Repository, "run", n.job.Run, "job", n.job.Key, "name", name, "bytes", size)
	return map[string]any{"ok": true, "artifact_id": strconv.FormatInt(id, 10)}, n.end(u)
}

func (n *Session) listArtifacts(m message) (any, error) {
	if err := n.own(m); err != nil {
		return nil, err
	}
	name, err := m.text("name_filter")
	if err != nil {
		return nil, err
	}
	id, err := m.number("id_filter")
	if err != nil {
		return nil, err
	}
	x, err := n.store.view(n.job.Repository)
	if err != nil {
		return nil, err
	}
	list := []map[string]any{}
	for _, a := range x.Artifacts {
		if !n.mine(a) || name != "" && a.Name != name || id >= 0 && a.ID != id {
			continue
		}
		list = append(list, map[string]any{"workflow_run_backend_id": a.Run, "workflow_job_run_backend_id": jobID(a.Job), "database_id": strconv.FormatInt(a.ID, 10),
			"name": a.Name, "size": strconv.FormatInt(a.Size, 10), "created_at": a.Created.Format(time.RFC3339Nano), "digest": a.Digest})
	}
	return map[string]any{"artifacts": list}, nil
}

// named is the newest artifact of a name that the job sees.
func (n *Session) named(all []Artifact, m message) (Artifact, error) {
	if err := n.own(m); err != nil {
		return Artifact{}, err
	}
	name, err := m.text("name")
	if err != nil {
		return Artifact{}, err
	}
	for _, a := range slices.Backward(all) {
		if n.mine(a) && a.Name == name {
			return a, nil
		}
	}
	return Artifact{}, refuse(notFound, "the run has no artifact %.255q", name)
}

func (n *Session) artifactURL(m message) (any, error) {
	x, err := n.store.view(n.job.Repository)
	if err != nil {
		return nil, err
	}
	a, err := n.named(x.Artifacts, m)
	if err != nil {
		return nil, err
	}
	return map[string]any{"signed_url": n.sign(blobsPath+strings.TrimPrefix(a.Digest, "sha256:"), "r", downloadTime, a.File(), a.Type)}, nil
}

// File is the name of the file that an artifact is downloaded as.
func (a Artifact) File() string {
	if a.Zip() && !strings.EqualFold(path.Ext(a.Name), ".zip") {
		return a.Name + ".zip"
	}
	return a.Name
}

func (n *Session) deleteArtifact(m message) (any, error) {
	var gone Artifact
	err := n.store.update(n.job.Repository, func(p *place) (err error) {
		if gone, err = n.named(p.Artifacts, m); err != nil {
			return err
		}
		p.Artifacts = deleteArtifacts(p.Artifacts, func(a Artifact) bool { return a.ID == gone.ID })
		return nil
	})
	if err != nil {
		return nil, err
	}
	return map[string]any{"ok": true, "artifact_id": strconv.FormatInt(gone.ID, 10)}, nil
}
