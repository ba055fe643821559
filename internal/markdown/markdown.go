// Package markdown shows what a step wrote to GITHUB_STEP_SUMMARY: GitHub's Markdown
// with the HTML that it allows in it, out of a machine, and so by assumption hostile.
//
// goldmark makes HTML of it, whatever is in there; nothing of that goes out. It is
// parsed into a tree as a browser would parse it, and a new tree is made of the
// elements and attributes that are on a list ([elements]), with text as text, which is
// what is written. So there is nothing to slip past: an element that is not on the list
// has no node, an attribute that is not on its list was never copied, and no address
// but http, https and mailto. Elements of other name spaces (svg, math), and those
// whose content a browser reads by other rules, go with all that is in them. Nothing is
// loaded: an image is a link to it.
//
// Parsers of Markdown take some patterns a time that grows with the square of their
// length. So a summary that is very long, has more marks than people write, or would
// become many times as long, is shown as the text that it is.
package markdown

import (
	"bytes"
	"html/template"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/renderer/html"
	nethtml "golang.org/x/net/html"
	"golang.org/x/net/html/atom"
)

const (
	maxDepth = 60      // elements in each other; deeper ones are left out, their text stays
	maxNodes = 200_000 // of what is made; what comes after is left out
	maxQuote = 60      // block quotes and lists in each other, on one line

	maxText  = 128 << 10 // bytes of Markdown
	maxMarks = 10_000    // characters in it that may mean something
	maxGrown = 8         // times its length
)

// marks are those of Markdown and HTML in a line.
const marks = "[]*_~`<!&\\"

// elements are those that may be in a summary, with their attributes, as GitHub has
// them; but no id, name, class or style: they could mean something to the page.
var elements = map[atom.Atom][]string{
	atom.H1: nil, atom.H2: nil, atom.H3: nil, atom.H4: nil, atom.H5: nil, atom.H6: nil,
	atom.P: {"align"}, atom.Br: nil, atom.Hr: nil, atom.Div: {"align"}, atom.Span: nil, atom.Blockquote: nil, atom.Pre: nil, atom.Code: nil,
	atom.Samp: nil, atom.Kbd: nil,
	atom.Var: nil, atom.Tt: nil, atom.B: nil, atom.Strong: nil, atom.I: nil, atom.Em: nil, atom.S: nil, atom.Strike: nil, atom.Del: nil,
	atom.Ins: nil, atom.Sub: nil, atom.Sup: nil, atom.Small: nil, atom.Mark: nil, atom.Q: nil, atom.Abbr: {"title"}, atom.Ul: nil,
	atom.Ol: {"start", "reversed"}, atom.Li: nil, atom.Dl: nil, atom.Dt: nil, atom.Dd: nil, atom.Details: {"open"}, atom.Summary: nil,
	atom.Table: nil, atom.Caption: nil, atom.Thead: nil, atom.Tbody: nil, atom.Tfoot: nil, atom.Tr: nil,
	atom.Th: {"align", "colspan", "rowspan"}, atom.Td: {"align", "colspan", "rowspan"}, atom.A: {"href", "title"}, atom.Img: {"src", "alt"},
	atom.Input: {"type", "checked"},
}

// gone are elements that go with all that is in them: their content is no text for
// people, or is read by rules of its own.
var gone = map[atom.Atom]bool{
	atom.Script: true, atom.Style: true, atom.Template: true, atom.Noscript: true, atom.Noembed: true, atom.Noframes: true,
	atom.Iframe: true, atom.Object: true, atom.Embed: true, atom.Applet: true, atom.Xmp: true, atom.Plaintext: true,
	atom.Textarea: true, atom.Title: true, atom.Select: true, atom.Math: true, atom.Svg: true, atom.Video: true, atom.Audio: true,
	atom.Canvas: true, atom.Frameset: true, atom.Head: true, atom.Link: true, atom.Meta: true, atom.Base: true,
}

var reader = goldmark.New(goldmark.WithExtensions(extension.Linkify, extension.Strikethrough, extension.TaskList,
	extension.NewTable(extension.WithTableCellAlignMethod(extension.TableCellAlignAttribute))),
	goldmark.WithRendererOptions(html.WithUnsafe(), html.WithHardWraps()))

// HTML is a summary as it may stand in a page.
func HTML(text string) template.HTML {
	if len(text) > maxText || strings.IndexFunc(text, counter(marks, maxMarks)) >= 0 {
		return plain(text)
	}
	text = calm(text)
	var loose bytes.Buffer
	if err := reader.Convert([]byte(text), &loose); err != nil {
		return plain(text)
	}
	body := &nethtml.Node{Type: nethtml.ElementNode, DataAtom: atom.Div, Data: "div"}
	nodes, err := nethtml.ParseFragment(&loose, body)
	if err != nil {
		return plain(text)
	}
	c := copier{left: maxNodes}
	for _, n := range nodes {
		c.add(body, n, 0)
	}
	var out bytes.Buffer
	for n := body.FirstChild; n != nil; n = n.NextSibling {
		if err := nethtml.Render(&out, n); err != nil {
			return plain(text)
		}
	}
	if out.Len() > maxGrown*len(text)+4<<10 {
		return plain(text)
	}
	return template.HTML(out.String()) // of nodes that we made
}

// plain is a summary that no parser takes.
func plain(text string) template.HTML {
	return template.HTML("<pre>" + template.HTMLEscapeString(text) + "</pre>")
}

// counter says of the first of so many characters of a set that it is too many.
func counter(set string, most int) func(rune) bool {
	n := 0
	return func(r rune) bool {
		if strings.ContainsRune(set, r) {
			n++
		}
		return n > most
	}
}

// calm takes out what costs a parser of Markdown more than its length: quotes and lists
// that begin in each other hundreds of times.
func calm(text string) string {
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		markers := 0
		for j, r := range l {
			if !strings.ContainsRune("> \t-*+.)0123456789", r) {
				break
			}
			if strings.ContainsRune(">-*+.)", r) {
				markers++
			}
			if markers > maxQuote {
				lines[i] = l[:j]
				break
			}
		}
	}
	return strings.Join(lines, "\n")
}

// copier makes nodes of what is allowed.
type copier struct{ left int }

func (c *copier) add(to, n *nethtml.Node, depth int) {
	if c.left--; c.left < 0 {
		return
	}
	switch n.Type {
	case nethtml.TextNode:
		to.AppendChild(&nethtml.Node{Type: nethtml.TextNode, Data: n.Data})
		return
	case nethtml.ElementNode:
	default: // comments and the like
		return
	}
	if n.Namespace != "" || gone[n.DataAtom] {
		return
	}
	attributes, known := elements[n.DataAtom]
	made := to
	switch {
	case n.DataAtom == atom.Img:
		made = image(n)
		if inside(to, atom.A) { // it cannot be a link in a link
			made = &nethtml.Node{Type: nethtml.TextNode, Data: words(n)}
		}
		to.AppendChild(made)
		return
	case n.DataAtom == atom.Input:
		if attr(n, "type") == "checkbox" {
			box := "☐"
			if slices.ContainsFunc(n.Attr, func(a nethtml.Attribute) bool { return a.Key == "checked" }) {
				box = "☑"
			}
			to.AppendChild(&nethtml.Node{Type: nethtml.TextNode, Data: box})
		}
		return
	case known && depth < maxDepth:
		made = &nethtml.Node{Type: nethtml.ElementNode, DataAtom: n.DataAtom, Data: n.DataAtom.String()}
		for _, key := range attributes {
			if v, ok := value(n, key); ok {
				made.Attr = append(made.Attr, nethtml.Attribute{Key: key, Val: v})
			}
		}
		if n.DataAtom == atom.A {
			made.Attr = append(made.Attr, nethtml.Attribute{Key: "rel", Val: "noopener noreferrer nofollow"})
		}
		to.AppendChild(made)
	}
	for child := n.FirstChild; child != nil; child = child.NextSibling {
		c.add(made, child, depth+1)
	}
}

func inside(n *nethtml.Node, a atom.Atom) bool {
	for ; n != nil; n = n.Parent {
		if n.DataAtom == a {
			return true
		}
	}
	return false
}

// image is a link to an image, or its words alone.
func image(n *nethtml.Node) *nethtml.Node {
	text := &nethtml.Node{Type: nethtml.TextNode, Data: words(n)}
	to := address(attr(n, "src"))
	if to == "" {
		return text
	}
	a := &nethtml.Node{Type: nethtml.ElementNode, DataAtom: atom.A, Data: "a", Attr: []nethtml.Attribute{{Key: "href", Val: to},
		{Key: "rel", Val: "noopener noreferrer nofollow"}}}
	a.AppendChild(text)
	return a
}

func words(n *nethtml.Node) string {
	if alt := strings.TrimSpace(attr(n, "alt")); alt != "" {
		return alt
	}
	return "image"
}

func attr(n *nethtml.Node, key string) string {
	for _, a := range n.Attr {
		if a.Namespace == "" && a.Key == key {
			return a.Val
		}
	}
	return ""
}

// value is an attribute, if its value is one that it may have.
func value(n *nethtml.Node, key string) (string, bool) {
	if !slices.ContainsFunc(n.Attr, func(a nethtml.Attribute) bool { return a.Namespace == "" && a.Key == key }) {
		return "", false
	}
	v := attr(n, key)
	switch key {
	case "href":
		v = address(v)
		return v, v != ""
	case "align":
		v = strings.ToLower(v)
		return v, v == "left" || v == "right" || v == "center"
	case "colspan", "rowspan", "start":
		i, err := strconv.Atoi(v)
		return strconv.Itoa(i), err == nil && i >= 0 && i <= 1000
	case "open", "reversed":
		return "", true
	}
	return v, true
}

// address is where a link may lead, "" for nowhere.
func address(s string) string {
	u, err := url.Parse(strings.TrimSpace(s))
	if err != nil {
		return ""
	}
	switch {
	case (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && u.User == nil:
	case u.Scheme == "mailto" && u.Opaque != "":
	default:
		return "" // also a relative one: it would lead into these pages
	}
	return u.String()
}
