package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/hashicorp/terraform-plugin-sdk/v2/helper/schema"
	"github.com/hetznercloud/hcloud-go/v2/hcloud"
)

// orderOf returns what a server is ordered with.
func orderOf(ctx context.Context, d *schema.ResourceData, client *hcloud.Client) (order hcloud.ServerCreateOpts, err error) {
	order = hcloud.ServerCreateOpts{
		Name:       d.Get("name").(string),
		ServerType: &hcloud.ServerType{Name: d.Get("server_type").(string)},
		Labels:     labels(d),
		UserData:   d.Get("user_data").(string),
		PublicNet:  addressesOf(d),
	}
	if order.Image, err = imageOf(ctx, d, client); err != nil {
		return order, err
	}
	if order.SSHKeys, err = keysOf(ctx, d, client); err != nil {
		return order, err
	}
	if name := placeOf(d); name != "" {
		order.Location = &hcloud.Location{Name: name}
	}
	for _, id := range d.Get("firewall_ids").(*schema.Set).List() {
		order.Firewalls = append(order.Firewalls, &hcloud.ServerCreateFirewall{Firewall: hcloud.Firewall{ID: int64(id.(int))}})
	}
	if id := d.Get("placement_group_id").(int); id != 0 {
		order.PlacementGroup = &hcloud.PlacementGroup{ID: int64(id)}
	}
	if isHidden(order.PublicNet) && d.Get("network").(*schema.Set).Len() > 0 {
		// Nobody would reach it, nor would it find its configuration, before it is in its network.
		order.StartAfterCreate = hcloud.Ptr(false)
	}
	return order, nil
}

// placeOf returns where a server is to stand. The cloud knows data centers no more: of fsn1-dc14 the location remains.
func placeOf(d *schema.ResourceData) string {
	if location := d.Get("location").(string); location != "" {
		return location
	}
	location, _, _ := strings.Cut(d.Get("datacenter").(string), "-")
	return location
}

// imageOf returns the image of that name, or number, for the processor of the type of server.
func imageOf(ctx context.Context, d *schema.ResourceData, client *hcloud.Client) (*hcloud.Image, error) {
	wanted, named := d.Get("image").(string), d.Get("server_type").(string)
	if wanted == "" {
		return nil, fmt.Errorf("no image is named")
	}
	kind, _, err := client.ServerType.Get(ctx, named)
	if err != nil {
		return nil, err
	}
	if kind == nil {
		return nil, fmt.Errorf("server type %s not found", named)
	}
	image, _, err := client.Image.GetForArchitecture(ctx, wanted, kind.Architecture)
	if err != nil {
		return nil, err
	}
	if image == nil {
		return nil, fmt.Errorf("image %s for architecture %s not found", wanted, kind.Architecture)
	}
	if image.IsDeprecated() && !d.Get("allow_deprecated_images").(bool) {
		return nil, fmt.Errorf("image %s is deprecated: allowDeprecatedImages takes it all the same", wanted)
	}
	return image, nil
}

// keysOf returns the keys that a server is ordered with, by name or number.
func keysOf(ctx context.Context, d *schema.ResourceData, client *hcloud.Client) (found []*hcloud.SSHKey, err error) {
	for _, wanted := range d.Get("ssh_keys").([]any) {
		key, _, err := client.SSHKey.Get(ctx, wanted.(string))
		if err != nil {
			return nil, err
		}
		if key == nil {
			return nil, fmt.Errorf("SSH key not found: %s", wanted)
		}
		found = append(found, key)
	}
	return found, nil
}
