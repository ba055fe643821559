package web

import (
	"errors"
	"net/http"

	"github.com/hearth-ci/hearth/internal/door"
)

// member lets in who has logged in; others get the page that says how, in the
// place of what they wanted.
func (s *Server) member(next http.Handler) http.Handler {
	if s.login == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch _, err := s.login.Who(r); {
		case errors.Is(err, door.ErrNoPass):
			s.ask(w, http.StatusUnauthorized, r.URL.RequestURI(), "")
		case err != nil:
			s.fail(w, r, err)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// client is who holds what a request takes: a session, else an address.
func (s *Server) client(r *http.Request) string {
	if s.login != nil {
		if p, err := s.login.Who(r); err == nil {
			return p.ID
		}
	}
	return door.Client(r.RemoteAddr)
}

// ask shows the login. next is where it goes on, on this server.
func (s *Server) ask(w http.ResponseWriter, status int, next, wrong string) {
	s.render(w, status, "login.html", map[string]any{"Title": "Log in", "Version": s.version, "Next": door.Here(next), "Wrong": wrong})
}

func (s *Server) loginPage(w http.ResponseWriter, r *http.Request) {
	s.ask(w, http.StatusOK, r.URL.Query().Get("next"), "")
}

func (s *Server) logIn(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 8<<10)
	if err := r.ParseForm(); err != nil {
		s.ask(w, http.StatusBadRequest, "/", "That could not be read.")
		return
	}
	next := door.Here(r.PostForm.Get("next"))
	switch err := s.login.In(w, r.PostForm.Get("link")); {
	case errors.Is(err, door.ErrNoPass):
		s.ask(w, http.StatusForbidden, next, "This link is not good, or not any more: it works once, for ten minutes. Make another one.")
	case err != nil:
		s.fail(w, r, err)
	default:
		w.Header().Set("Cache-Control", "no-store")
		http.Redirect(w, r, next, http.StatusSeeOther)
	}
}

func (s *Server) logOut(w http.ResponseWriter, r *http.Request) {
	if err := s.login.Out(w, r); err != nil {
		s.fail(w, r, err)
		return
	}
	s.ask(w, http.StatusOK, "/", "")
}
