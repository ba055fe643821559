package markdown

import (
	"fmt"
	"regexp"
	"strings"

	nethtml "golang.org/x/net/html"
	"golang.org/x/net/html/atom"
)

var code = regexp.MustCompile("(?s)```.*?(?:```|$)|`[^`\n]+`")

// Text is a summary for a terminal: Markdown as it was written, with the HTML in it (the
// tables and details that GitHub's own packages make) as text. What stands in code is
// left alone.
func Text(text string) string {
	if !strings.Contains(text, "<") {
		return text
	}
	// Code stands aside: a sign of the private use area, which nobody prints.
	const aside = '\uE000'
	text = strings.ReplaceAll(text, string(aside), "")
	kept := code.FindAllString(text, -1)
	z := nethtml.NewTokenizer(strings.NewReader(code.ReplaceAllString(text, string(aside))))
	var out strings.Builder
	skip, fresh, href := atom.Atom(0), true, ""
	write := func(s string) {
		if s != "" {
			out.WriteString(s)
			fresh = strings.HasSuffix(s, "\n")
		}
	}
	line := func() {
		if !fresh {
			write("\n")
		}
	}
	for {
		kind := z.Next()
		if kind == nethtml.ErrorToken {
			break
		}
		t := z.Token()
		switch {
		case skip != 0:
			if kind == nethtml.EndTagToken && t.DataAtom == skip {
				skip = 0
			}
		case kind == nethtml.TextToken && fresh && strings.TrimSpace(t.Data) == "": // between tags
		case kind == nethtml.TextToken:
			write(t.Data)
		case kind == nethtml.EndTagToken:
			switch t.DataAtom {
			case atom.Td, atom.Th:
				write(" |")
			case atom.A:
				if href != "" {
					write(" (" + href + ")")
				}
				href = ""
			case atom.P, atom.Div, atom.Tr, atom.Table, atom.Li, atom.Ul, atom.Ol, atom.Summary, atom.Details, atom.H1, atom.H2, atom.H3, atom.H4, atom.H5,
				atom.H6, atom.Pre, atom.Blockquote:
				line()
			}
		case kind == nethtml.StartTagToken || kind == nethtml.SelfClosingTagToken:
			n := &nethtml.Node{Attr: t.Attr}
			switch t.DataAtom {
			case atom.Br:
				write("\n")
			case atom.Hr:
				line()
				write("---\n")
			case atom.Tr:
				line()
				write("|")
			case atom.Td, atom.Th:
				write(" ")
			case atom.Li:
				line()
				write("- ")
			case atom.H1, atom.H2, atom.H3, atom.H4, atom.H5, atom.H6:
				line()
				write(strings.Repeat("#", int(t.Data[1]-'0')) + " ")
			case atom.P, atom.Div, atom.Table, atom.Ul, atom.Ol, atom.Summary, atom.Details, atom.Pre, atom.Blockquote:
				line()
			case atom.A:
				href = address(attr(n, "href"))
			case atom.Img:
				write(fmt.Sprintf("[%s]", words(n)))
			default:
				if gone[t.DataAtom] && kind == nethtml.StartTagToken {
					skip = t.DataAtom
				}
			}
		}
	}
	parts := strings.Split(out.String(), string(aside))
	var whole strings.Builder
	for i, p := range parts {
		whole.WriteString(p)
		if i < len(kept) && i < len(parts)-1 {
			whole.WriteString(kept[i])
		}
	}
	return whole.String()
}
