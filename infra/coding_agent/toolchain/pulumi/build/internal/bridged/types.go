package bridged

import (
	"fmt"
	"unicode"

	"github.com/pulumi/inflector"
	"github.com/pulumi/pulumi-terraform-bridge/v3/pkg/tfbridge"
	shim "github.com/pulumi/pulumi-terraform-bridge/v3/pkg/tfshim"
	pschema "github.com/pulumi/pulumi/pkg/v3/codegen/schema"
)

// writer collects the types of objects within objects, which a schema names on its highest level.
type writer struct {
	pkg   string
	types map[string]pschema.ComplexTypeSpec
}

// object returns the properties of an object; `name` is what the names of types within it begin with.
func (w *writer) object(name string, fields shim.SchemaMap, infos fieldInfos) pschema.ObjectTypeSpec {
	spec := pschema.ObjectTypeSpec{Type: "object", Properties: map[string]pschema.PropertySpec{}}
	for _, each := range named(fields, infos) {
		property := pschema.PropertySpec{
			TypeSpec:             w.typeOf(nested(name, each), each.schema, each.info),
			Secret:               each.isSecret(),
			WillReplaceOnChanges: each.schema.ForceNew(),
		}
		if each.info != nil && each.info.Default != nil && len(each.info.Default.EnvVars) > 0 {
			property.DefaultInfo = &pschema.DefaultSpec{Environment: each.info.Default.EnvVars}
		}
		spec.Properties[each.name] = property
		if !each.optionalInput() {
			spec.Required = append(spec.Required, each.name)
		}
	}
	return spec
}

// nested returns the name of the type that a property of an object has, where it needs one: the mounts of a Container
// are each a ContainerMount.
func nested(object string, property field) string {
	name := property.name
	if kind := property.schema.Type(); (kind == shim.TypeList || kind == shim.TypeSet) &&
		!tfbridge.IsMaxItemsOne(property.schema, property.info) {
		name = inflector.Singularize(name)
	}
	letters := []rune(name)
	letters[0] = unicode.ToUpper(letters[0])
	return object + string(letters)
}

// typeOf returns the type of a value; `name` is the name of the object type in it, if there is one.
func (w *writer) typeOf(name string, schema shim.Schema, info *tfbridge.SchemaInfo) pschema.TypeSpec {
	switch schema.Type() {
	case shim.TypeBool:
		return pschema.TypeSpec{Type: "boolean"}
	case shim.TypeInt:
		return pschema.TypeSpec{Type: "integer"}
	case shim.TypeFloat:
		return pschema.TypeSpec{Type: "number"}
	case shim.TypeString:
		return pschema.TypeSpec{Type: "string"}
	case shim.TypeDynamic:
		return pschema.TypeSpec{Ref: "pulumi.json#/Any"}
	}
	element := w.elementOf(name, schema, info)
	if tfbridge.IsMaxItemsOne(schema, info) {
		return element
	}
	if schema.Type() == shim.TypeMap {
		return pschema.TypeSpec{Type: "object", AdditionalProperties: &element}
	}
	return pschema.TypeSpec{Type: "array", Items: &element}
}

// elementOf returns the type of what is in a list, a set or a map. Of a map Terraform need not say it: then it is text.
func (w *writer) elementOf(name string, schema shim.Schema, info *tfbridge.SchemaInfo) pschema.TypeSpec {
	var within *tfbridge.SchemaInfo
	if info != nil {
		within = info.Elem
	}
	switch element := schema.Elem().(type) {
	case shim.Schema:
		return w.typeOf(name, element, within)
	case shim.Resource:
		var infos fieldInfos
		if within != nil {
			infos = within.Fields
		}
		token := fmt.Sprintf("%s:index/%s:%s", w.pkg, name, name)
		w.types[token] = pschema.ComplexTypeSpec{ObjectTypeSpec: w.object(name, element.Schema(), infos)}
		return pschema.TypeSpec{Ref: "#/types/" + token}
	}
	return pschema.TypeSpec{Type: "string"}
}
