package store_test

import (
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/store/storetest"
)

// An id of a signature follows from what was printed, and can be made: a
// repository that has another's id reads and changes its own row, whatever asks.
func TestAttackSignatureOfAnotherRepository(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s, ctx := open(), t.Context()
		hit := func(repo string, n int) store.Signature {
			t.Helper()
			before, fresh, err := s.AddHit(ctx, store.Signature{ID: "same", Text: "text of " + repo},
				store.Hit{Run: fmt.Sprint(repo, n), JobKey: "j", Step: 1, Attempt: 1,
					Identity: "step", Repository: repo, SHA: "sha of " + repo, At: time.UnixMilli(int64(n))})
			if err != nil || !fresh {
				t.Fatal(fresh, err)
			}
			return before
		}
		for i := range 3 {
			hit("o/a", i+1)
		}
		lesson := store.Lesson{Repository: "o/a", Identity: "step", Signature: "same", Text: "of a", Evidence: "{}", Last: time.UnixMilli(1),
			Expires: time.UnixMilli(9)}
		ok(t, s.PutLesson(ctx, lesson))
		ok(t, s.Learn(ctx, "x", func(l *store.Learning) error {
			ok(t, l.Fixed("o/a", "same", "sha of a fix", "subject"))
			return l.CountRetry("o/a", "same", true)
		}))
		if before := hit("o/b", 1); before.Seen != 0 || before.FixedBy != "" || before.Text != "" {
			t.Errorf("o/b's first failure came after %+v", before)
		}
		lesson.Repository, lesson.Text = "o/b", "of b"
		ok(t, s.PutLesson(ctx, lesson))
		ok(t, s.LessonShown(ctx, "o/b", "step", "same"))
		ok(t, s.Learn(ctx, "x", func(l *store.Learning) error {
			hits, err := l.RecentHits("o/b", "step", 10)
			if err != nil || len(hits) != 1 {
				t.Errorf("o/b's failures of a step: %+v, %v", hits, err)
			}
			return l.CountRetry("o/b", "same", false)
		}))
		a := must[store.Signature](t)(s.Signature(ctx, "o/a", "same"))
		if a.Seen != 3 || a.RetryFail != 0 || a.FixedBy != "sha of a fix" {
			t.Errorf("o/a has %+v", a)
		}
		if hits := must[[]store.Hit](t)(s.Hits(ctx, "o/b", "same", 10)); len(hits) != 1 || hits[0].SHA != "sha of o/b" {
			t.Errorf("o/b's failures: %+v", hits)
		}
		if list := must[[]store.Signature](t)(s.Signatures(ctx, "o/b", 10)); len(list) != 1 || list[0].Text != "text of o/b" {
			t.Errorf("o/b's signatures: %+v", list)
		}
		if lessons := must[[]store.Lesson](t)(s.Lessons(ctx, "o/a", time.UnixMilli(2))); len(lessons) != 1 || lessons[0].Text != "of a" || lessons[0].Shown != 0 {
			t.Errorf("o/a's lessons: %+v", lessons)
		}
		// One key of the learner's graph is a row for each repository.
		ok(t, s.Learn(ctx, "x", func(l *store.Learning) error {
			return l.Save(store.Knowledge{Nodes: []store.Node{{Repository: "o/a", ID: "n", Text: "a"}, {Repository: "o/b", ID: "n", Text: "b"}},
				Edges: []store.Edge{{Repository: "o/a", Src: "n", Kind: "k", Dst: "n"}, {Repository: "o/b", Src: "n", Kind: "k", Dst: "n"}}}, l.Cursor)
		}))
		ok(t, s.Learn(ctx, "x", func(l *store.Learning) error {
			ok(t, l.Forget([]store.Node{{Repository: "o/b", ID: "n"}}, []store.Edge{{Repository: "o/b", Src: "n", Kind: "k", Dst: "n"}}, nil))
			k, err := l.Changed(0)
			if len(k.Nodes) != 1 || k.Nodes[0].Text != "a" || len(k.Edges) != 1 || k.Edges[0].Repository != "o/a" {
				t.Errorf("left: %+v", k)
			}
			return err
		}))
	})
}

// A repository that fails in another way each time fills its own share of the
// tables and no more; what came often stays, and so does what others have.
func TestAttackFloodOfFailures(t *testing.T) {
	store.LimitFailures(t, 20, 50, 5)
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s, ctx := open(), t.Context()
		hit := func(repo, id string, n int) {
			t.Helper()
			at := time.UnixMilli(int64(n))
			_, _, err := s.AddHit(ctx, store.Signature{ID: id}, store.Hit{Run: fmt.Sprint(repo, n), JobKey: "j", Step: 1, Repository: repo, At: at})
			ok(t, err)
			ok(t, s.PutLesson(ctx, store.Lesson{Repository: repo, Identity: repo, Signature: id, Last: at, Expires: at.Add(time.Hour)}))
		}
		hit("o/quiet", "rare", 1)
		hit("o/flood", "often", 1)
		hit("o/flood", "often", 2)
		for n := range 100 {
			hit("o/flood", fmt.Sprintf("f%03d", n), 10+n)
		}
		sigs := must[[]store.Signature](t)(s.Signatures(ctx, "o/flood", 1000))
		if len(sigs) != 20 || sigs[0].ID != "f099" || sigs[19].ID != "often" {
			t.Errorf("%d signatures, from %+v to %+v", len(sigs), sigs[0], sigs[len(sigs)-1])
		}
		hits := 0
		for _, v := range sigs {
			hits += len(must[[]store.Hit](t)(s.Hits(ctx, "o/flood", v.ID, 1000)))
		}
		if hits > 50 {
			t.Errorf("%d failures", hits)
		}
		if l := must[[]store.Lesson](t)(s.Lessons(ctx, "o/flood", time.UnixMilli(1))); len(l) != 5 {
			t.Errorf("%d lessons", len(l))
		}
		if v := must[store.Signature](t)(s.Signature(ctx, "o/quiet", "rare")); v.Seen != 1 {
			t.Errorf("%+v", v)
		}
		if l := must[[]store.Lesson](t)(s.Lessons(ctx, "o/quiet", time.UnixMilli(1))); len(l) != 1 {
			t.Errorf("%d lessons of the other", len(l))
		}
	})
}

// TestRepositoriesAreToldApart: a record of before, brought up to date. Of one
// repository all stays; of two, what both had is split or forgotten.
func TestRepositoriesAreToldApart(t *testing.T) {
	old := func(t *testing.T, db *sql.DB, two bool) {
		t.Helper()
		text, err := os.ReadFile("migrations/0001_base.sql")
		ok(t, err)
		for _, stmt := range append([]string{`CREATE TABLE migrations (name TEXT PRIMARY KEY, applied BIGINT NOT NULL)`,
			`INSERT INTO migrations (name, applied) VALUES ('0001_base.sql', 1)`}, store.Statements(string(text))...) {
			if _, err := db.Exec(stmt); err != nil {
				t.Fatal(err, stmt)
			}
		}
		repos := []string{"o/a"}
		if two {
			repos = append(repos, "o/b")
		}
		for i, r := range repos {
			for _, stmt := range []string{
				fmt.Sprintf(`INSERT INTO runs VALUES ('run%d',1,1,'','push','%s','w','w','','','','','completed','success',1,1,1,'')`, i, r),
				fmt.Sprintf(`INSERT INTO predictions VALUES ('p%d','run%d','j',1,'',1,0,0,0,0,0,'[]',1,'success',0,1)`, i, i),
				fmt.Sprintf(`INSERT INTO signature_hits VALUES ('shared','run%d','j',1,1,'i','%s','main','sha',%d,'line of %s')`, i, r, 5+i, r),
			} {
				if _, err := db.Exec(stmt); err != nil {
					t.Fatal(err, stmt)
				}
			}
		}
		for _, stmt := range []string{
			`INSERT INTO signature_hits VALUES ('own','run0','k',1,1,'i','o/a','main','sha',7,'line')`,
			`INSERT INTO signatures VALUES ('shared','t','c','k','s',40,1,9,'fixer','subject',3,4), ('own','t','c','k','s',50,1,9,'fixer','subject',3,4)`,
			`INSERT INTO lessons VALUES ('l1','o/a','i','shared','text','{}',1,1,9,0,0), ('l2','o/a','i','own','text','{}',1,1,9,0,0)`,
			`INSERT INTO nodes VALUES ('command:make','command','make',1,1,1,1)`, `INSERT INTO edges VALUES ('a','b','k',1,1,1,1)`,
			`INSERT INTO model VALUES ('s:123456789abc',NULL,1,1), ('f:123456789abc',NULL,1,1), ('g:ff',NULL,1,1), ('c:ff',NULL,1,1)`,
		} {
			if _, err := db.Exec(stmt); err != nil {
				t.Fatal(err, stmt)
			}
		}
		ok(t, db.Close())
	}
	for _, two := range []bool{false, true} {
		check := func(t *testing.T, driver, raw, dsn string) {
			db, err := sql.Open(driver, raw)
			ok(t, err)
			old(t, db, two)
			s, err := store.Open(t.Context(), dsn, store.WithLogs(t.TempDir()))
			ok(t, err)
			defer s.Close()
			ctx := t.Context()
			if v := must[store.Signature](t)(s.Signature(ctx, "o/a", "own")); v.Seen != 50 || v.FixedBy != "fixer" || v.RetryOK != 3 {
				t.Errorf("a repository's own signature: %+v", v)
			}
			v := must[store.Signature](t)(s.Signature(ctx, "o/a", "shared"))
			if two && (v.Seen != 1 || v.FixedBy != "" || v.RetryOK != 0 || v.Text != "line of o/a") || !two && v.Seen != 40 {
				t.Errorf("of the signature that both had: %+v", v)
			}
			if n := len(must[[]store.Lesson](t)(s.Lessons(ctx, "o/a", time.UnixMilli(2)))); two && n != 1 || !two && n != 2 {
				t.Errorf("%d lessons", n)
			}
			if n := len(must[[]store.Prediction](t)(s.ClosedPredictions(ctx, "o/a", 9))); n != 1 {
				t.Errorf("%d predictions of o/a", n)
			}
			ok(t, s.Learn(ctx, "learn", func(l *store.Learning) error {
				k, err := l.Changed(0)
				keys := map[string]bool{}
				for _, m := range k.Models {
					keys[m.Key] = true
				}
				if two && (len(k.Nodes)+len(k.Edges) != 0 || len(keys) != 2 || !keys["f: 123456789abc"]) ||
					!two && (len(k.Nodes) != 1 || k.Nodes[0].Repository != "o/a" || len(k.Edges) != 1 || !keys["s:o/a 123456789abc"] || !keys["f:o/a 123456789abc"] ||
						!keys["g:o/a ff"]) || !keys["c:ff"] {
					t.Errorf("knowledge: %+v", k)
				}
				return err
			}))
		}
		name := map[bool]string{false: "one", true: "two"}[two]
		t.Run(name+"/sqlite", func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "hearth.db")
			check(t, "sqlite", "file:"+path, path)
		})
		t.Run(name+"/postgresql", func(t *testing.T) {
			dsn := storetest.PostgreSQL(t)
			check(t, "pgx", dsn, dsn)
		})
	}
}
