package web

import (
	"context"
	"errors"
	"mime"
	"net/http"
	"strconv"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
)

// maxArtifacts is how many a page lists.
const maxArtifacts = 500

// left are a run's artifacts, those made last if there are too many. A page without
// them is better than none.
func (s *Server) left(ctx context.Context, run ci.Run) []Artifact {
	if s.artifacts == nil {
		return nil
	}
	all, err := s.artifacts.Artifacts(ctx, run)
	if err != nil {
		s.log.Error("artifacts", "run", run.ID, "err", err)
	}
	return all[max(0, len(all)-maxArtifacts):]
}

// artifact sends one as a file to keep: what a machine made is never shown here.
func (s *Server) artifact(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.ParseInt(r.PathValue("artifact"), 10, 64)
	if err != nil || !ci.ValidID(r.PathValue("id")) || s.artifacts == nil {
		s.fail(w, r, ErrNotFound)
		return
	}
	run, err := s.source.Run(r.Context(), r.PathValue("id"))
	if err != nil {
		s.fail(w, r, err)
		return
	}
	a, content, err := s.artifacts.OpenArtifact(r.Context(), run, id)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	defer content.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": a.File}))
	w.Header().Set("Cache-Control", "no-store")
	http.ServeContent(&patient{w, http.NewResponseController(w)}, r, "", time.Time{}, content)
}

// patient gives every part of an answer its own time.
type patient struct {
	http.ResponseWriter
	control *http.ResponseController
}

func (p *patient) Write(b []byte) (int, error) {
	if err := p.control.SetWriteDeadline(time.Now().Add(writeTime)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, err
	}
	return p.ResponseWriter.Write(b)
}
